"""The canary: a small set of sequences that the learner scores when it publishes and every producer after applying.

Both sides compute the log-probs of the same tokens under the same version; where they differ by more than rounding, the
weights that generate are not those that are trained (a reload that went wrong, a kernel that reads them in another
layout), and every importance ratio from then on is wrong without any other sign.

Only tokens that the policy sampled are compared, in the context in which they were sampled, from all parts of
responses to different prompts. On what a policy never says rounding alone moves log-probs by tenths: four copies of a
chat template's system prompt gave 0.57 in a healthy run. The set is chosen anew every RENEWED_EVERY publications, since
what the policy said long ago it may not say any more.

How much rounding there is, the engine itself has shown: before the first update the set's recorded log-probs are those
of version 0 by the engine, and the learner computes its own of the same version. A drift is a fault where it is FACTOR
times that.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
import torch
from torch.distributed.fsdp import FSDPModule

from learner.model.packed_row import PackedRow, Rollout, pack_rollouts
from learner.model.policy import Policy
from learner.ranks.group import RankGroup
from schemas import Canary, CanaryScored, Event, NDArray, WeightsPublished, WeightsRefused
from streams.record import Record

logger = logging.getLogger(__name__)

SEQUENCES: Final = 16
TOKENS: Final = 2_048
"""Of the whole set, prompts included: a small part of what a step computes. A single sequence may be longer."""

RENEWED_EVERY: Final = 50

FACTOR: Final = 6.0
"""Over a run of the demo the drift of a healthy producer varies between half and four times what it was at first; the
faults that are known are thirty times it and more."""

FLOOR: Final = 0.02
"""The smallest bound: with equal precisions on both sides there may be hardly any rounding in the first batch."""

CEILING: Final = 0.5
"""The largest bound: an engine that is wrong from the start must not set its own. FP8 blocks with an FP8 cache, the
coarsest that is known, round by 0.05; the mildest of the known faults is at 1.4."""

UNKNOWN: Final = 0.2
"""The bound where the rounding is not known: sets of earlier versions, or sampled at another temperature than 1."""

_KEPT_VERSIONS: Final = 64

Ids = np.ndarray[Any, np.dtype[np.uint32]]


class Chosen(msgspec.Struct, frozen=True):
    """One sequence of the set: its tokens, which of all but the first are compared, and the engine's log-probs of them.

    `engine` is None where the engine's figures are not comparable: of older weights, or at another temperature.
    """

    tokens: list[int]
    judged: list[bool]
    engine: list[float] | None


class CanarySet:
    """The learner's half: the set, and its scores under the present weights. All methods are collective."""

    def __init__(self, policy: Policy, ranks: RankGroup, published: Canary | None) -> None:
        """`published`: the set and the rounding of an earlier process, whose scores are not used."""
        self._policy = policy
        self._ranks = ranks
        self._set = published
        self._scored = 0

    def prepare(self, micro_batches: Sequence[Sequence[Rollout]]) -> None:
        """Before a step, with each rank's micro-batches of its batch: choose a set, where there is none yet or anew."""
        if self._set is not None and self._scored < RENEWED_EVERY:
            return
        # Every rank proposes of what it has, and all take the first proposal.
        proposals = self._ranks.exchange(msgspec.json.encode(choose(micro_batches)))
        chosen = next((found for each in proposals if (found := msgspec.json.decode(each, type=list[Chosen]))), None)
        if chosen is None:
            if self._set is None:
                logger.warning("the canary has nothing to compare: no response of this batch has two sampled tokens")
            return
        own = score(self._policy, chosen, self._ranks.device)
        known = None if self._set is None else self._set.rounding
        self._set = msgspec.structs.replace(own, rounding=_rounding(own, chosen) if known is None else known)
        self._scored = 0

    def score(self) -> Canary | None:
        """The set under the present weights. None: nothing could be chosen so far."""
        if self._set is None:
            return None
        self._scored += 1
        self._set = scored(self._policy, self._set, self._ranks.device)
        return self._set


def choose(micro_batches: Sequence[Sequence[Rollout]]) -> list[Chosen]:
    """Whole sequences of different prompts, of TOKENS together, or the shortest one where none is that short.

    Among those that leave room for as many others the ones with the most sampled tokens come first, then the shorter.
    Never a part of one: a fault that grows along a response is not seen at its beginning.
    """
    rollouts = [rollout for micro in micro_batches for rollout in micro]
    candidates = [(rollout, chosen) for rollout in rollouts if any((chosen := _whole(rollout)).judged)]
    share = TOKENS // SEQUENCES

    def order(item: tuple[Rollout, Chosen]) -> tuple[int, int]:
        tokens = len(item[1].tokens)
        return max(tokens, share), -sum(item[1].judged)

    by_prompt: dict[tuple[int, ...], Chosen] = {}
    room = TOKENS
    for rollout, chosen in sorted(candidates, key=order):
        prompt = tuple(rollout.tokens[: rollout.prompt_tokens].tolist())
        if prompt not in by_prompt and (len(chosen.tokens) <= room or not by_prompt):
            by_prompt[prompt] = chosen
            room -= len(chosen.tokens)
        if len(by_prompt) == SEQUENCES:
            break
    return list(by_prompt.values())


def _whole(rollout: Rollout) -> Chosen:
    # An engine that scores samples one token more: a sequence as long as the model takes would be refused.
    length = len(rollout.tokens) - 1
    responses = len(rollout.tokens) - rollout.prompt_tokens
    sampled = [True] * responses if rollout.sampled is None else rollout.sampled.tolist()
    before = rollout.prompt_tokens - 1
    comparable = rollout.staleness == 0 and rollout.temperature == 1.0
    return Chosen(
        tokens=rollout.tokens[:length].tolist(),
        judged=([False] * before + sampled)[: max(0, length - 1)],
        engine=([0.0] * before + rollout.logp_rollout.tolist())[: max(0, length - 1)] if comparable else None,
    )


def _rounding(own: Canary, chosen: Sequence[Chosen]) -> float | None:
    """Mean |Δ log p| to what the engine recorded when it sampled; None where it recorded nothing comparable."""
    if any(each.engine is None for each in chosen):
        return None
    deltas = [
        abs(own.logprobs.numpy()[row, at] - (each.engine or [])[at])
        for row, each in enumerate(chosen)
        for at in range(len(each.judged))
        if each.judged[at]
    ]
    return float(np.mean(deltas))


def score(policy: Policy, chosen: Sequence[Chosen], device: torch.device) -> Canary:
    """The chosen sequences under the present weights, as a set of its own. Collective."""
    longest = max(len(each.tokens) for each in chosen)
    ids = np.zeros((len(chosen), longest), np.uint32)
    judged = np.zeros((len(chosen), longest - 1), np.uint8)
    for row, each in enumerate(chosen):
        ids[row, : len(each.tokens)] = each.tokens
        judged[row, : len(each.judged)] = each.judged
    nothing = np.zeros(judged.shape, np.float32)
    unscored = Canary(token_ids=NDArray.of(ids), logprobs=NDArray.of(nothing), judged=NDArray.of(judged))
    return scored(policy, unscored, device)


@torch.no_grad()
def scored(policy: Policy, canary: Canary, device: torch.device) -> Canary:
    """The same set with its log-probs under the present weights, routed natively. Collective: all ranks, same set."""
    rows = canary.rows()
    logp, _ = policy(canary_row(rows).to(device))
    # Without a backward the root stays whole, and checkpoints are made of the shards.
    if isinstance(policy, FSDPModule):
        policy.reshard()
    logprobs = np.zeros(canary.logprobs.shape, np.float32)
    parts = torch.split(logp.float().cpu(), [len(row) - 1 for row in rows])
    for number, part in enumerate(parts):
        logprobs[number, : len(part)] = part.numpy()
    return msgspec.structs.replace(canary, logprobs=NDArray.of(logprobs))


def canary_row(rows: Sequence[Sequence[int]]) -> PackedRow:
    """All sequences in one row; each one's first token is its prompt."""
    return pack_rollouts(
        [
            Rollout(
                rollout_id=f"canary.{index}",
                tokens=torch.tensor(each, dtype=torch.int64),
                prompt_tokens=1,
                logp_rollout=torch.zeros(len(each) - 1),
                routes=None,
                advantage=0.0,
                reward=0.0,
            )
            for index, each in enumerate(rows)
        ]
    )


def bound_of(canary: Canary, setting: float | None) -> float:
    """The mean |Δ log p| above which a producer's scores are a fault: `setting`, else of what its engine has shown."""
    if setting is not None:
        return setting
    if canary.rounding is None:
        return UNKNOWN
    # Not a number is larger than nothing: it ends at the ceiling too.
    return max(FLOOR, FACTOR * canary.rounding) if FACTOR * canary.rounding <= CEILING else CEILING


@dataclass(frozen=True, slots=True)
class Drift:
    """|Δ log p| between a producer and the learner at one version, over the tokens of the set."""

    producer_id: str
    version: int
    mean: float
    max: float


class CanaryWatch:
    """Compares producers' scores with the published ones, both read from the log, in whichever order they come.

    A drift whose mean is above the bound (`bound_of`) is logged and counted; figures go to `gauge`. `on_refused` is
    called with a version that a producer could not use.
    """

    def __init__(
        self, bound: float | None, gauge: Callable[[str, float], None], on_refused: Callable[[int], None]
    ) -> None:
        self.alarms = 0
        self._bound = bound
        self._gauge = gauge
        self._on_refused = on_refused
        self._published: dict[int, Canary] = {}
        self._scored: dict[tuple[int, str], CanaryScored] = {}

    def on_event(self, event: Event, record: Record) -> None:
        """A record of `weights` or `applied`."""
        if isinstance(event, WeightsPublished) and event.canary is not None:
            self._published[event.version] = event.canary
            for version, producer_id in [key for key in self._scored if key[0] == event.version]:
                self._compare(version, producer_id)
            for version in sorted(self._published)[:-_KEPT_VERSIONS]:
                del self._published[version]
        elif isinstance(event, WeightsRefused):
            self._on_refused(event.version)
        elif isinstance(event, CanaryScored):
            self._scored[event.version, event.producer_id] = event
            self._compare(event.version, event.producer_id)
            for key in sorted(self._scored)[:-_KEPT_VERSIONS]:
                del self._scored[key]

    def _compare(self, version: int, producer_id: str) -> None:
        canary = self._published.get(version)
        if canary is None:
            return
        scored = self._scored.pop((version, producer_id))
        if scored.set_digest and scored.set_digest != canary.set_digest():
            # The learner ended between two publications of a version and chose anew; other tokens say nothing.
            return
        drift = compare(canary, scored.logprobs, version, producer_id)
        self._gauge(f"canary_drift_{producer_id}", drift.mean)
        self._gauge(f"canary_drift_max_{producer_id}", drift.max)
        bound = bound_of(canary, self._bound)
        self._gauge("canary_bound", bound)
        # Not a number compares as false: it is an alarm as well.
        if not drift.mean <= bound:
            self.alarms += 1
            why = "learner.publish.canary_bound" if self._bound is not None else _why(canary)
            logger.error(
                "CANARY: %s computes other log-probs with weights %d than the learner: mean |Δ log p| %.4f, max %.4f, "
                "bound %.4g (%s); its rollouts are not those of the published weights: restart that producer, and if "
                "the next versions say the same, compare its engine's settings with the learner's",
                producer_id, version, drift.mean, drift.max, bound, why,
            )  # fmt: skip
        self._gauge("canary_alarms", self.alarms)


def _why(canary: Canary) -> str:
    if canary.rounding is None:
        return "the default where the engine's rounding is not known"
    shown = f"{FACTOR:g} times the {canary.rounding:.4f} of the engine before the first update"
    return f"{shown}, within {FLOOR:g} and {CEILING:g}"


def compare(canary: Canary, scored: NDArray, version: int, producer_id: str) -> Drift:
    """The drift; infinite where the producer scored another set, or a score is not finite."""
    own, other, judged = canary.logprobs.numpy(), scored.numpy(), canary.compared()
    if own.shape != other.shape or not judged.any() or not np.isfinite(other[judged]).all():
        return Drift(producer_id, version, float("inf"), float("inf"))
    delta = np.abs(own - other.astype(np.float32))[judged]
    return Drift(producer_id, version, float(delta.mean()), float(delta.max()))
