"""What a step was trained on, as one digest that every reader of the log can compute again.

    sequences = [sequence_digest(planned, rollout) for each of BatchPlanned.sequences that the step did not reject]
    StepCompleted.trained_digest == step_digest(sequences)

It covers what the gradient is made of: which rollouts in which order, their tokens, which of these the policy sampled,
the log-probs recorded with them, temperature, advantage, and whether the advantages are shaped by entropies. It covers
neither router decisions (their blobs have digests of their own, and may be deleted before the log) nor figures that are
only reported, such as rewards. Ranks and micro-batches play no part in it.
"""

import hashlib
import struct
from collections.abc import Iterable
from typing import Final

from schemas.events import RolloutCompleted
from schemas.parts import PlannedSequence

PREFIX: Final = "sha256:"


def sequence_digest(planned: PlannedSequence, rollout: RolloutCompleted) -> bytes:
    """SHA-256 of one sequence of a batch, 32 bytes. A `loss_mask` of ones is the same as none.

    Of these parts, each behind its length in bytes (u8, little-endian): rollout id (UTF-8), advantage (f8), `unanimous`
    (text, empty for None), temperature (f8), prompt ids (u4), response ids (u4), mask (u1, 1: sampled), log-probs (f4).
    """
    response = rollout.response_ids
    mask = b"\x01" * response.shape[0] if rollout.loss_mask is None else rollout.loss_mask.data
    parts: tuple[bytes | memoryview, ...] = (
        planned.rollout_id.encode(),
        struct.pack("<d", planned.advantage),
        (planned.unanimous or "").encode(),
        struct.pack("<d", rollout.sampling.temperature),
        rollout.prompt_ids.data,
        response.data,
        mask,
        rollout.logprobs.data,
    )
    digest = hashlib.sha256()
    for part in parts:
        digest.update(struct.pack("<Q", len(part) if isinstance(part, bytes) else part.nbytes))
        digest.update(part)
    return digest.digest()


def step_digest(sequences: Iterable[bytes]) -> str:
    """`sha256:` and the SHA-256 (hexadecimal) of the sequences' digests, one after the other in the batch's order."""
    return PREFIX + hashlib.sha256(b"".join(sequences)).hexdigest()
