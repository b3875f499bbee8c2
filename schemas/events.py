"""Every event on the log: frozen structs in one tagged union.

Evolution: a new field has a default; types and tags never change; golden bytes of every released version stay in tests.
Times are unix seconds. Topics of a `Ref` are the catalogue's short names.
"""

from typing import Any, Literal

import msgspec
import numpy as np

from schemas.arrays import NDArray
from schemas.parts import (
    MAX_SAMPLES,
    Canary,
    Count,
    Disposition,
    EngineInfo,
    Finite,
    Member,
    Message,
    PlannedSequence,
    Purpose,
    Ref,
    Rejected,
    RewardComponent,
    RolloutTimings,
    Routes,
    Sampling,
    Time,
    Unanimous,
    WeightFile,
    WeightSpan,
    check_reference,
)


class EventBase(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type", tag=True):
    """Base of all events."""


class GroupRequested(EventBase, frozen=True, kw_only=True):
    """`samples` rollouts of one prompt are wanted before `deadline_s`. Exactly one of `prompt` and `messages` is set.

    `sequence` numbers the requests of a run from 0; `version` is the newest published version the dispatcher knew;
    `evaluation` is the step after which a held-back round was asked for (purpose `evaluate`).
    """

    group_id: str
    prompt_id: str
    visit: Count
    sequence: Count
    task: str
    samples: Count
    sampling: Sampling
    verifier: str
    reference: str | dict[str, Any]
    time_s: Time
    deadline_s: Time
    prompt: str | None = None
    messages: tuple[Message, ...] | None = None
    purpose: Purpose = "train"
    evaluation: Count | None = None
    version: Count = 0
    predicted_tokens: Count | None = None

    def __post_init__(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError(f"group {self.group_id} has exactly one of prompt and messages")
        if not 1 <= self.samples <= MAX_SAMPLES:
            raise ValueError(f"group {self.group_id} asks for {self.samples} samples and not for 1 to {MAX_SAMPLES}")
        check_reference(f"group {self.group_id}", self.reference)


class RolloutCompleted(EventBase, frozen=True, kw_only=True):
    """One finished rollout with everything the learner needs; the request's facts are repeated so that no stage joins.

    `logprobs` f4 `[response tokens]`, finite: log-probability of each sampled token under the weights of its span.
    """

    rollout_id: str
    group_id: str
    prompt_id: str
    index: Count
    attempt: Count
    producer_id: str
    request: Ref
    task: str
    samples: Count
    verifier: str
    reference: str | dict[str, Any]
    deadline_s: Time
    prompt_ids: NDArray
    response_ids: NDArray
    logprobs: NDArray
    spans: tuple[WeightSpan, ...]
    sampling: Sampling
    finish_reason: Literal["stop", "length"]
    engine: EngineInfo
    timings: RolloutTimings
    requested_s: Time
    time_s: Time
    routes: Routes | None = None
    purpose: Purpose = "train"
    evaluation: Count | None = None

    def __post_init__(self) -> None:
        check_reference(f"rollout {self.rollout_id}", self.reference)
        tokens = self.response_ids.shape
        if self.prompt_ids.dtype != "u4" or self.response_ids.dtype != "u4" or self.logprobs.dtype != "f4":
            raise ValueError(f"rollout {self.rollout_id} has ids that are not u4 or log-probs that are not f4")
        if len(tokens) != 1 or len(self.prompt_ids.shape) != 1 or self.logprobs.shape != tokens:
            raise ValueError(
                f"rollout {self.rollout_id} has {self.logprobs.shape} log-probs for {tokens} response tokens"
            )
        if not np.isfinite(self.logprobs.numpy()).all():
            raise ValueError(f"rollout {self.rollout_id} has a log-prob that is not finite")
        firsts = [span.first_token for span in self.spans]
        if not firsts or firsts[0] != 0 or firsts != sorted(set(firsts)) or firsts[-1] > tokens[0]:
            raise ValueError(f"rollout {self.rollout_id} has weight spans {firsts} that do not cover its response")
        total = self.prompt_ids.shape[0] + tokens[0]
        if self.routes is not None and self.routes.first_token + self.routes.shape[0] != total:
            raise ValueError(
                f"rollout {self.rollout_id} has routes for tokens {self.routes.first_token} to "
                f"{self.routes.first_token + self.routes.shape[0]} of {total}"
            )


class RolloutScored(EventBase, frozen=True, kw_only=True):
    """The verdict on one rollout. `valid` false: the verifier came to none (`error` says why) and the reward is 0."""

    rollout_id: str
    group_id: str
    prompt_id: str
    index: Count
    attempt: Count
    rollout: Ref
    task: str
    samples: Count
    deadline_s: Time
    valid: bool
    time_s: Time
    reward: Finite = 0.0
    passed: Finite | None = None
    components: tuple[RewardComponent, ...] = ()
    error: str | None = None
    prompt_tokens: Count = 0
    response_tokens: Count = 0
    oldest_version: Count = 0
    newest_version: Count = 0
    finish_reason: str = "stop"
    purpose: Purpose = "train"
    evaluation: Count | None = None
    requested_s: Time = 0.0


class GroupReady(EventBase, frozen=True, kw_only=True):
    """A group to be trained on, but for the members that have a `disposition`.

    Its rewards have variance, or it is `unanimous` and the members' advantages (0 here) are made by the learner.
    """

    group_id: str
    prompt_id: str
    task: str
    members: tuple[Member, ...]
    reward_mean: Finite
    reward_std: Finite
    time_s: Time
    deadline_s: Time
    pass_rate: Finite | None = None
    partial: bool = False
    requested_s: Time = 0.0
    unanimous: Unanimous | None = None


class GroupDropped(EventBase, frozen=True, kw_only=True):
    """A group that will not be trained on: each member's disposition is its end."""

    group_id: str
    prompt_id: str
    task: str
    reason: Disposition
    members: tuple[Member, ...]
    time_s: Time
    pass_rate: Finite | None = None
    reward_mean: Finite = 0.0
    requested_s: Time = 0.0


class GroupEvaluated(EventBase, frozen=True, kw_only=True):
    """A held-back group: measured, never trained on. `evaluation` is the step after which its round was asked for."""

    group_id: str
    prompt_id: str
    task: str
    evaluation: Count
    members: tuple[Member, ...]
    time_s: Time
    pass_rate: Finite | None = None
    reward_mean: Finite = 0.0
    requested_s: Time = 0.0


class RolloutDisposed(EventBase, frozen=True, kw_only=True):
    """The end of one rollout outside its group's own event: `duplicate`, a later attempt or a straggler.

    `expired` is said of a group that is not remembered any more: it counts where nothing else ended the rollout.
    """

    rollout_id: str
    group_id: str
    rollout: Ref
    disposition: Disposition
    time_s: Time


class BatchPlanned(EventBase, frozen=True, kw_only=True):
    """Batch number `batch` (from 0), by reference.

    `ranks[r][m]` are the indices into `sequences` of micro-batch m of rank r. `loads` is each rank's cost Σ a·n + b·n²;
    `fill` the share of the token budget used; `imbalance` max load / mean load.
    """

    batch: Count
    groups: tuple[str, ...]
    sequences: tuple[PlannedSequence, ...]
    ranks: tuple[tuple[tuple[Count, ...], ...], ...]
    token_budget: Count
    time_s: Time
    loads: tuple[Finite, ...] = ()
    fill: Finite = 0.0
    imbalance: Finite = 1.0
    staleness_max: int = 0
    staleness_mean: Finite = 0.0
    waited_s: Finite = 0.0

    def __post_init__(self) -> None:
        indices = sorted(index for rank in self.ranks for micro_batch in rank for index in micro_batch)
        if indices != list(range(len(self.sequences))):
            raise ValueError(f"batch {self.batch} does not place each of its {len(self.sequences)} sequences once")


class StepCompleted(EventBase, frozen=True, kw_only=True):
    """The learner trained on batch `batch` and holds weights `version` (the number of steps done) now.

    A later record for the same step is a replay after a crash and says the same; readers keep the first.
    """

    step: Count
    batch: Count
    batch_ref: Ref
    version: Count
    metrics: dict[str, float]
    time_s: Time
    tokens: Count = 0
    sequences: Count = 0
    rejected: tuple[Rejected, ...] = ()
    wall_s: Finite = 0.0
    waited_s: Finite = 0.0


class WeightsPublished(EventBase, frozen=True, kw_only=True):
    """Weights `version` are in the blob store, complete and fsynced, when this is written.

    `full`: safetensors files with every tensor. `delta`: the elements that differ from weights `base_version`, in the
    format of `streams.weights.delta`. `digest` and `base_digest` are of all tensors after and before (see
    `streams.weights.tensors.state_digest`): a delta is refused where the base is another, whatever its version says.
    """

    version: Count
    kind: Literal["full", "delta"]
    precision: Literal["bf16", "fp8", "f32"]
    files: tuple[WeightFile, ...]
    tensors: Count
    parent_step: Count
    time_s: Time
    base_version: Count | None = None
    digest: str | None = None
    base_digest: str | None = None
    canary: Canary | None = None

    def __post_init__(self) -> None:
        if self.kind != "delta":
            return
        if self.base_version is None or self.base_digest is None or self.digest is None:
            raise ValueError(f"weights {self.version} are a delta without base_version, base_digest or digest")
        if self.base_version >= self.version:
            raise ValueError(f"weights {self.version} are a delta on weights {self.base_version}, which are not older")


class WeightsApplied(EventBase, frozen=True, kw_only=True):
    """A producer generates with weights `version` from now on; `pause_s` is how long generation stood still.

    Said again for the same version with `canary_logprobs` (the shape of the publication's) once they are measured; and
    with `refused`, a newer publication that this producer cannot use: the learner answers with a full one.
    """

    producer_id: str
    version: Count
    time_s: Time
    published_s: Time = 0.0
    fetch_s: Finite = 0.0
    pause_s: Finite = 0.0
    in_flight: Count = 0
    canary_logprobs: NDArray | None = None
    refused: Count | None = None


class DeadLetter(EventBase, frozen=True, kw_only=True):
    """A record that a stage could not take, with its original bytes; or a later word on one, without them.

    `replayed` says that the record was put back there (the letter of a rollout stays that rollout's end: what was put
    back is a new one). `purged` says that its bytes were deleted; `ends` are then the rollouts that ended with it.
    """

    source: Ref
    stage: str
    error: str
    data: bytes
    time_s: Time
    key: bytes | None = None
    headers: dict[str, bytes] = {}
    attempts: Count = 1
    replayed: Ref | None = None
    purged: bool = False
    ends: tuple[Ref, ...] = ()


Event = (
    GroupRequested
    | RolloutCompleted
    | RolloutScored
    | GroupReady
    | GroupDropped
    | GroupEvaluated
    | RolloutDisposed
    | BatchPlanned
    | StepCompleted
    | WeightsPublished
    | WeightsApplied
    | DeadLetter
)
