"""The parts that events are made of: references, messages, sampling, spans, routes, blobs, scores."""

import hashlib
import math
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec
import numpy as np
from msgspec import Meta

from schemas.arrays import NDArray

Disposition = Literal[
    "trained", "zero_variance", "stale", "invalid", "expired", "duplicate", "dead_letter", "evaluated"
]
"""How a rollout ends. `evaluated` is for the rollouts of a held-back prompt, which are never trained on."""

Purpose = Literal["train", "evaluate"]

Unanimous = Literal["correct", "wrong"]
"""What all rollouts of a group are, where their rewards have no variance and the group is trained on nevertheless."""

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
"""A count, offset or version: at most what 64 signed bits hold in every client."""

Finite = Annotated[float, Meta(ge=-1e300, le=1e300)]
"""Neither infinite nor NaN: one NaN reward would make every mean and comparison after it meaningless."""

Time = Annotated[float, Meta(ge=0, le=1e11)]
"""Unix seconds, up to the year 5138. NaN is excluded: a NaN deadline would never pass."""

MAX_REFERENCE_DEPTH: Final = 32

MAX_METADATA_BYTES: Final = 64 * 1024
"""The metadata of a prompt at most, as JSON: it is in every request of the prompt."""

MAX_TURNS: Final = 4096
"""Turns of one response at most."""

MAX_ROLE: Final = 64
"""Characters of a turn's role at most."""

POLICY_ROLE: Final = "assistant"
"""The role of the turns whose tokens the policy samples."""

MAX_SAMPLES: Final = 65_536
"""Samples of one group at most: a producer allocates for each of them when it receives the request."""


class Part(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of every part: a MessagePack map whose absent fields have their defaults."""


class Ref(NamedTuple):
    """Where a record is: short topic name of the catalogue, partition, offset."""

    topic: str
    partition: Count
    offset: Count


class Message(Part, frozen=True, kw_only=True):
    """One turn of a chat prompt."""

    role: str
    content: str


class Sampling(Part, frozen=True, kw_only=True):
    """How tokens are drawn; `top_k` 0 and `top_p` 1 mean the whole vocabulary, as the importance ratios assume."""

    max_tokens: Count
    temperature: Finite = 1.0
    top_p: Finite = 1.0
    top_k: Count = 0

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"sampling max_tokens {self.max_tokens} is not at least 1")
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ValueError(
                f"sampling temperature {self.temperature}, top_p {self.top_p}, top_k {self.top_k} is not "
                "temperature ≥ 0, 0 < top_p ≤ 1, top_k ≥ 0"
            )


class WeightSpan(NamedTuple):
    """The response tokens from `first_token` on (until the next span) were computed with weights `version`."""

    first_token: Count
    version: Count


class Turn(NamedTuple):
    """The response tokens from `first_token` on (until the next turn) are of `role`: `assistant`, `tool`, `user`, …"""

    first_token: Count
    role: Annotated[str, Meta(min_length=1, max_length=MAX_ROLE)]


class BlobRef(Part, frozen=True, kw_only=True):
    """Bytes outside the log: where, how many, the digest of the stored bytes and their codec.

    `digest` is `sha256:` and 64 hexadecimal digits; bare ones are BLAKE2b-256, as earlier references hold them.
    """

    uri: str
    size: Count
    digest: str
    codec: Literal["none", "zstd"] = "none"


class Routes(Part, frozen=True, kw_only=True):
    """Router decisions `[tokens, moe_layers, top_k]`, one row per prompt and response token from `first_token` on.

    A token-layer without a recorded route has all its `top_k` entries equal to `sentinel`: no real decision selects
    one expert twice, so the sentinel is unambiguous even where the dtype has no value to spare (256 experts in u1).
    Exactly one of `data` (inline) and `blob` is set; the blob holds the same C-order bytes.
    """

    experts: Annotated[int, Meta(ge=1, le=2**16)]
    shape: tuple[Count, Count, Count]
    dtype: Literal["u1", "u2"]
    sentinel: Annotated[int, Meta(ge=0, lt=2**16)]
    first_token: Count = 0
    data: NDArray | None = None
    blob: BlobRef | None = None

    def __post_init__(self) -> None:
        if (self.data is None) == (self.blob is None):
            raise ValueError("routes have exactly one of data and blob")
        if self.data is not None and (self.data.shape != self.shape or self.data.dtype != self.dtype):
            raise ValueError(
                f"routes say {self.dtype}{list(self.shape)} and hold {self.data.dtype}{list(self.data.shape)}"
            )
        if any(n < 0 for n in self.shape) or self.first_token < 0 or self.experts < 1:
            raise ValueError(
                f"routes shape {self.shape}, first_token {self.first_token} or experts {self.experts} is negative"
            )


def check_reference(owner: str, reference: object) -> None:
    """ValueError: a verifier's reference nests deeper than MAX_REFERENCE_DEPTH, which no encoder accepts."""
    level, depth = [reference], 0
    while level := [
        item
        for value in level
        if isinstance(value, dict | list | tuple)
        for item in (value.values() if isinstance(value, dict) else value)
    ]:
        depth += 1
        if depth > MAX_REFERENCE_DEPTH:
            raise ValueError(f"{owner} has a reference that nests deeper than {MAX_REFERENCE_DEPTH}")


def check_metadata(owner: str, metadata: dict[str, Any]) -> None:
    """ValueError: not plain JSON (text, finite numbers of 64 bits, true, false, null, lists and objects of these),
    deeper than MAX_REFERENCE_DEPTH, or more than MAX_METADATA_BYTES of it.
    """
    level: list[tuple[str, object]] = list(metadata.items())
    depth = 0
    while level:
        depth += 1
        if depth > MAX_REFERENCE_DEPTH:
            raise ValueError(f"{owner} has metadata that nests deeper than {MAX_REFERENCE_DEPTH}")
        below: list[tuple[str, object]] = []
        for key, value in level:
            match value:
                case None | bool() | str():
                    pass
                case int() if -(2**63) <= value < 2**64:
                    pass
                case float() if math.isfinite(value):
                    pass
                case dict() if all(isinstance(name, str) for name in value):
                    below += [(key, item) for item in value.values()]
                case list() | tuple():
                    below += [(key, item) for item in value]
                case _:
                    raise ValueError(
                        f"{owner} has metadata {key[:80]!r} with {str(value)[:80]} of type {type(value).__name__}; "
                        "allowed are text, finite numbers of 64 bits, true, false, null, and lists and objects of these"
                    )
        level = below
    size = len(msgspec.json.encode(metadata)) if metadata else 0
    if size > MAX_METADATA_BYTES:
        raise ValueError(f"{owner} has metadata of {size} bytes; allowed are {MAX_METADATA_BYTES}")


class EngineInfo(Part, frozen=True, kw_only=True):
    """What generated a rollout."""

    name: str
    version: str
    model: str
    weights: str = "bf16"
    kv_cache: str = "auto"
    device: str = "cpu"


class RolloutTimings(Part, frozen=True, kw_only=True):
    """Unix times in seconds: request read from the log, given to the engine, first token, last token."""

    received_s: Time
    started_s: Time
    first_token_s: Time
    finished_s: Time


class RewardComponent(Part, frozen=True, kw_only=True):
    """One scorer's result: `value` counts with `weight` in the reward; `version` lets several coexist on the log."""

    name: str
    version: str
    value: Finite
    weight: Finite = 1.0


class Member(Part, frozen=True, kw_only=True):
    """One rollout of a group, by reference. `disposition` is set where it has one already and is not trained on."""

    rollout_id: str
    rollout: Ref
    reward: Finite = 0.0
    advantage: Finite = 0.0
    passed: Finite | None = None
    prompt_tokens: Count = 0
    response_tokens: Count = 0
    oldest_version: Count = 0
    newest_version: Count = 0
    disposition: Disposition | None = None


class PlannedSequence(Part, frozen=True, kw_only=True):
    """One sequence of a batch: its rollout's reference and what else the learner needs.

    `unanimous` is set where the group's rewards have no variance: the learner then derives advantages from the tokens'
    entropies.
    """

    rollout_id: str
    rollout: Ref
    advantage: Finite
    reward: Finite
    prompt_tokens: Count
    response_tokens: Count
    oldest_version: Count
    unanimous: Unanimous | None = None


class WeightFile(Part, frozen=True, kw_only=True):
    """One file of published weights in the blob store."""

    name: str
    blob: BlobRef


class Canary(Part, frozen=True, kw_only=True):
    """A fixed set of sequences and their log-probabilities by the learner's own weights, for producers to compare with.

    `token_ids` u4 `[sequences, tokens]`, zeros behind the end of a shorter sequence; `logprobs` f4 `[sequences, tokens
    - 1]`, of every token but the first, routed natively. `judged` u1 of the same shape is 1 where producers are
    compared: the tokens that a policy sampled; None (as in earlier records): everywhere. `rounding`: the mean |Δ log p|
    between the learner and the engine that sampled the run's first set, at the version that sampled it; None: unknown.
    """

    token_ids: NDArray
    logprobs: NDArray
    judged: NDArray | None = None
    rounding: Finite | None = None

    def __post_init__(self) -> None:
        ids, logprobs = self.token_ids, self.logprobs
        if ids.dtype != "u4" or logprobs.dtype != "f4" or len(ids.shape) != 2 or ids.shape[1] < 2:
            raise ValueError(f"a canary has ids {ids.dtype}{list(ids.shape)} that are not u4 [sequences, tokens]")
        if logprobs.shape != (ids.shape[0], ids.shape[1] - 1):
            raise ValueError(f"a canary has {list(logprobs.shape)} log-probs for ids {list(ids.shape)}")
        if not np.isfinite(logprobs.numpy()).all():
            raise ValueError("a canary has a log-prob that is not finite")
        if self.judged is not None and (self.judged.dtype != "u1" or self.judged.shape != logprobs.shape):
            raise ValueError(f"a canary judges {self.judged.dtype}{list(self.judged.shape)} of {list(logprobs.shape)}")

    def compared(self) -> "np.ndarray[Any, np.dtype[np.bool_]]":
        """bool `[sequences, tokens - 1]`: where producers are compared."""
        if self.judged is None:
            return np.ones(self.logprobs.shape, bool)
        found: np.ndarray[Any, np.dtype[np.bool_]] = self.judged.numpy() != 0
        return found

    def set_digest(self) -> str:
        """SHA-256 (hexadecimal) of what is compared, ids and places; of the same set under other weights the same."""
        shape = np.array(self.token_ids.shape, "<u4").tobytes()
        return hashlib.sha256(shape + self.token_ids.numpy().tobytes() + self.compared().tobytes()).hexdigest()

    def rows(self) -> list[list[int]]:
        """Each sequence's token ids, up to the last one that is compared."""
        judged = self.compared()
        ends = [int(np.flatnonzero(row)[-1]) + 2 if row.any() else 2 for row in judged]
        return [ids[:end] for ids, end in zip(self.token_ids.numpy().tolist(), ends, strict=True)]


class Rejected(Part, frozen=True, kw_only=True):
    """A sequence that the learner refused: its disposition is `invalid`, and it was not trained on."""

    rollout_id: str
    rollout: Ref
    reason: str
