"""Before each batch the ranks exchange what they are about to do, so that none enters a collective alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from learner.errors import LearnerError
from schemas import Rejected
from schemas.digests import step_digest


class Intent(msgspec.Struct, frozen=True):
    """What one rank is about to do: train on batch number `batch` without its `rejected` sequences, or stop (None).

    `digests`: of its other sequences, by their index in the batch (`schemas.digests.sequence_digest`).
    """

    batch: int | None
    rejected: tuple[Rejected, ...] = ()
    digests: Mapping[int, bytes] = msgspec.field(default_factory=dict)

    def encode(self) -> bytes:
        """As MessagePack, for the exchange with the other ranks."""
        return msgspec.msgpack.encode(self)


@dataclass(frozen=True)
class Agreement:
    """What the ranks together reject from the batch, and the digest of what they train on."""

    rejected: tuple[Rejected, ...]
    trained_digest: str


def merge_intents(encoded: Sequence[bytes]) -> Agreement | None:
    """What all ranks together are about to do, given every rank's encoded intent in rank order.

    None: at least one rank stops, so all do. LearnerError: the ranks are about to train on different batches.
    """
    intents = [msgspec.msgpack.decode(part, type=Intent) for part in encoded]
    numbers = {intent.batch for intent in intents}
    if None in numbers:
        return None
    if len(numbers) > 1:
        raise LearnerError(f"ranks are about to train on different batches: {sorted(map(str, numbers))}")
    digests = {index: digest for intent in intents for index, digest in intent.digests.items()}
    return Agreement(
        rejected=tuple(rejected for intent in intents for rejected in intent.rejected),
        trained_digest=step_digest(digests[index] for index in sorted(digests)),
    )
