"""One rollout's way to its score: requested with its group, completed, scored; or ended outside its group."""

from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from schemas.arrays import NDArray
from schemas.events.base import EventBase
from schemas.parts import (
    MAX_SAMPLES,
    MAX_TURNS,
    POLICY_ROLE,
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
    Turn,
    WeightSpan,
    check_metadata,
    check_reference,
)


class GroupRequested(EventBase, frozen=True, kw_only=True):
    """`samples` rollouts of one prompt are wanted before `deadline_s`. Exactly one of `prompt` and `messages` is set.

    `sequence` numbers the requests of a run from 0; `version` is the newest published version the dispatcher knew;
    `evaluation` is the step after which a held-back round was asked for (purpose `evaluate`). `metadata` is what else
    the prompt's row said, plain JSON: no stage acts on it, and rollouts lead to it by their `request`.
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
    metadata: dict[str, Any] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError(f"group {self.group_id} has exactly one of prompt and messages")
        if not 1 <= self.samples <= MAX_SAMPLES:
            raise ValueError(f"group {self.group_id} asks for {self.samples} samples and not for 1 to {MAX_SAMPLES}")
        check_reference(f"group {self.group_id}", self.reference)
        if self.metadata:
            check_metadata(f"group {self.group_id}", self.metadata)


class RolloutCompleted(EventBase, frozen=True, kw_only=True):
    """One finished rollout with everything the learner needs; the request's facts are repeated so that no stage joins.

    `logprobs` f4 `[response tokens]`, finite: log-probability of each sampled token under the weights of its span.

    A response may hold tokens that the policy did not sample: what a tool or an environment answered, and what a
    template puts around it. `loss_mask` u1 `[response tokens]` is then 1 where the policy sampled the token and 0 where
    it was given; absent, all are sampled. Given tokens are context, as the prompt's are: their log-prob is 0 (they were
    certain), they count in the sequence's length and in `routes` (the engine routed them in a prefill), and in nothing
    that is trained, rewarded or measured of the policy. `turns` says who wrote which part; only an `assistant` samples.
    A span without a sampled token says nothing of staleness. `finish_reason` is `length` where a limit on tokens cut
    the response off, whoever's turn it was, and `stop` where the policy or the environment ended it.
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
    loss_mask: NDArray | None = None
    turns: tuple[Turn, ...] = ()

    @property
    def sampled(self) -> npt.NDArray[np.bool_] | None:
        """Which response tokens the policy sampled, bool `[response tokens]`; None: all of them."""
        return None if self.loss_mask is None else self.loss_mask.numpy().astype(np.bool_)

    @property
    def sampled_tokens(self) -> int:
        """How many response tokens the policy sampled."""
        return self.response_ids.shape[0] if self.loss_mask is None else int(self.loss_mask.numpy().sum())

    @property
    def sampled_runs(self) -> list[NDArray]:
        """The ids that the policy sampled, u4, one array for each run of neighbours; all in one without a mask."""
        if (sampled := self.sampled) is None:
            return [self.response_ids]
        edges = np.flatnonzero(np.diff(sampled, prepend=False, append=False))
        ids = self.response_ids.numpy()
        return [NDArray.of(ids[first:end]) for first, end in zip(edges[::2], edges[1::2], strict=True)]

    @property
    def sampled_versions(self) -> list[int]:
        """The versions of the weights that tokens were sampled with; of every span where all tokens were sampled."""
        if (sampled := self.sampled) is None:
            return [span.version for span in self.spans]
        firsts = [span.first_token for span in self.spans]
        return [
            span.version
            for span, end in zip(self.spans, [*firsts[1:], len(sampled)], strict=True)
            if sampled[span.first_token : end].any()
        ]

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
        if self.loss_mask is not None or self.turns:
            check_sampled(self)


def check_sampled(rollout: RolloutCompleted) -> None:
    """ValueError: its mask or turns do not fit its response, or contradict its log-probs or one another."""
    name, tokens = f"rollout {rollout.rollout_id}", rollout.response_ids.shape[0]
    mask = np.ones(tokens, np.uint8)
    if rollout.loss_mask is not None:
        if rollout.loss_mask.dtype != "u1" or rollout.loss_mask.shape != (tokens,):
            raise ValueError(
                f"{name} has a loss_mask {rollout.loss_mask.dtype}{list(rollout.loss_mask.shape)} for {tokens} "
                "response tokens; allowed is u1 with one entry a token"
            )
        mask = rollout.loss_mask.numpy()
        if mask.size and mask.max() > 1:
            raise ValueError(f"{name} has a loss_mask with {mask.max()}; allowed are 0 (given) and 1 (sampled)")
        if not mask.any():
            raise ValueError(f"{name} has a loss_mask by which none of its {tokens} response tokens was sampled")
        unsampled = np.flatnonzero((mask == 0) & (rollout.logprobs.numpy() != 0))
        if unsampled.size:
            raise ValueError(
                f"{name} has log-prob {rollout.logprobs.numpy()[unsampled[0]]:g} for response token {unsampled[0]}, "
                "which its loss_mask says was not sampled; allowed is 0"
            )
    if not rollout.turns:
        return
    firsts = [turn.first_token for turn in rollout.turns]
    if len(firsts) > MAX_TURNS or firsts[0] != 0 or firsts != sorted(set(firsts)) or firsts[-1] >= tokens:
        raise ValueError(
            f"{name} has {len(firsts)} turns from tokens {firsts[:8]} that do not part its {tokens} response tokens; "
            f"allowed are up to {MAX_TURNS}, rising from 0"
        )
    for turn, sampled in zip(rollout.turns, np.maximum.reduceat(mask, firsts).tolist(), strict=True):
        if sampled and turn.role != POLICY_ROLE:
            raise ValueError(
                f"{name} has sampled tokens in the turn of {turn.role!r} from token {turn.first_token}; allowed only "
                f"in turns of {POLICY_ROLE!r}"
            )


class RolloutScored(EventBase, frozen=True, kw_only=True):
    """The verdict on one rollout. `valid` false: the verifier came to none (`error` says why) and the reward is 0.

    `response_tokens` are all of the response's, by which it is packed; `sampled_tokens` those that the policy sampled,
    None where these are all. `oldest_version` and `newest_version` are of weights that a token was sampled with.
    """

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
    sampled_tokens: Count | None = None

    @property
    def generated_tokens(self) -> int:
        """Tokens that the policy sampled."""
        return self.response_tokens if self.sampled_tokens is None else self.sampled_tokens


class RolloutDisposed(EventBase, frozen=True, kw_only=True):
    """The end of one rollout outside its group's own event: `duplicate`, a later attempt or a straggler.

    `expired` is for a group that is not remembered any more: it counts where nothing else ended the rollout.
    """

    rollout_id: str
    group_id: str
    rollout: Ref
    disposition: Disposition
    time_s: Time
