"""One rollout's way to its score: requested with its group, completed, scored; or ended outside its group."""

from typing import Any, Literal

import numpy as np

from schemas.arrays import NDArray
from schemas.events.base import EventBase
from schemas.parts import (
    MAX_SAMPLES,
    Count,
    Disposition,
    EngineInfo,
    Finite,
    Message,
    Purpose,
    Ref,
    RewardComponent,
    RolloutTimings,
    Routes,
    Sampling,
    Time,
    WeightSpan,
    check_reference,
)


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


class RolloutDisposed(EventBase, frozen=True, kw_only=True):
    """The end of one rollout outside its group's own event: `duplicate`, a later attempt or a straggler.

    `expired` is for a group that is not remembered any more: it counts where nothing else ended the rollout.
    """

    rollout_id: str
    group_id: str
    rollout: Ref
    disposition: Disposition
    time_s: Time
