"""The canary: a fixed set of sequences that the learner scores when it publishes and every producer after applying.

Both sides compute the log-probs of the same tokens under the same version; where they differ by more than rounding, the
weights that generate are not those that are trained (a reload that went wrong, a kernel that reads them in another
layout), and every importance ratio from then on is wrong without any other sign.
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

SEQUENCES: Final = 4
TOKENS: Final = 32
_KEPT_VERSIONS: Final = 64

Ids = np.ndarray[Any, np.dtype[np.uint32]]


class CanarySet:
    """The learner's half: the set, chosen once from the first batch of a run, and its scores under the present weights.

    Real rollouts and not random tokens: on what a policy never generates, rounding alone moves log-probs by tenths
    (0.25 on the demo's model with an FP8 KV cache), and a fault has to be larger than that to be seen.
    """

    def __init__(self, policy: Policy, ranks: RankGroup, ids: Ids | None) -> None:
        """`ids`: the set that an earlier process published."""
        self._policy = policy
        self._ranks = ranks
        self._ids = ids

    def score(self, micro_batches: Sequence[Sequence[Rollout]]) -> Canary | None:
        """Collective, with each rank's micro-batches of the batch just trained on. None: nothing could be chosen."""
        if self._ids is None:
            # Every rank proposes of what it has, and all take the first proposal.
            proposals = self._ranks.exchange(msgspec.json.encode(choose(micro_batches)))
            chosen = next((found for each in proposals if (found := msgspec.json.decode(each))), None)
            if chosen is None:
                return None
            self._ids = np.array(chosen, np.uint32)
        return score(self._policy, self._ids, self._ranks.device)


def choose(micro_batches: Sequence[Sequence[Rollout]]) -> list[list[int]]:
    """The longest sequences, cut to the same length of at most `TOKENS`; none where none has two tokens."""
    tokens = [rollout.tokens.tolist() for micro in micro_batches for rollout in micro if len(rollout.tokens) > 1]
    longest = sorted(tokens, key=len, reverse=True)[:SEQUENCES]
    return [each[: min(TOKENS, len(longest[-1]))] for each in longest]


@torch.no_grad()
def score(policy: Policy, ids: Ids, device: torch.device) -> Canary:
    """`ids` u4 `[sequences, tokens]` under the present weights, routed natively. Collective: all ranks, same ids."""
    logp, _ = policy(canary_row(ids).to(device))
    # Without a backward the root stays whole, and checkpoints are made of the shards.
    if isinstance(policy, FSDPModule):
        policy.reshard()
    return Canary(
        token_ids=NDArray.of(ids),
        logprobs=NDArray.of(logp.float().cpu().numpy().reshape(ids.shape[0], ids.shape[1] - 1)),
    )


def canary_row(ids: Ids) -> PackedRow:
    """All sequences in one row; each one's first token is its prompt."""
    return pack_rollouts(
        [
            Rollout(
                rollout_id=f"canary.{index}",
                tokens=torch.from_numpy(each.astype(np.int64)),
                prompt_tokens=1,
                logp_rollout=torch.zeros(len(each) - 1),
                routes=None,
                advantage=0.0,
                reward=0.0,
            )
            for index, each in enumerate(ids)
        ]
    )


@dataclass(frozen=True, slots=True)
class Drift:
    """|Δ log p| between a producer and the learner at one version, over the tokens of the set."""

    producer_id: str
    version: int
    mean: float
    max: float


class CanaryWatch:
    """Compares producers' scores with the published ones, both read from the log, in whichever order they come.

    A drift whose mean is above `bound` is logged and counted; figures go to `gauge`. `on_refused` is called with
    a version that a producer could not use.
    """

    def __init__(self, bound: float, gauge: Callable[[str, float], None], on_refused: Callable[[int], None]) -> None:
        self.alarms = 0
        self._bound = bound
        self._gauge = gauge
        self._on_refused = on_refused
        self._published: dict[int, Canary] = {}
        self._scored: dict[tuple[int, str], NDArray] = {}

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
            self._scored[event.version, event.producer_id] = event.logprobs
            self._compare(event.version, event.producer_id)
            for key in sorted(self._scored)[:-_KEPT_VERSIONS]:
                del self._scored[key]

    def _compare(self, version: int, producer_id: str) -> None:
        canary = self._published.get(version)
        if canary is None:
            return
        drift = compare(canary, self._scored.pop((version, producer_id)), version, producer_id)
        self._gauge(f"canary_drift_{producer_id}", drift.mean)
        self._gauge(f"canary_drift_max_{producer_id}", drift.max)
        # Not a number compares as false: it is an alarm as well.
        if not drift.mean <= self._bound:
            self.alarms += 1
            logger.error(
                "CANARY: %s computes other log-probs with weights %d than the learner: mean |Δ log p| %.4f, max %.4f, "
                "bound %g; its rollouts are not those of the published weights",
                producer_id, version, drift.mean, drift.max, self._bound,
            )  # fmt: skip
        self._gauge("canary_alarms", self.alarms)


def compare(canary: Canary, scored: NDArray, version: int, producer_id: str) -> Drift:
    """The drift; infinite where the producer scored another set, or a score is not finite."""
    own, other = canary.logprobs.numpy(), scored.numpy()
    if own.shape != other.shape or not np.isfinite(other).all():
        return Drift(producer_id, version, float("inf"), float("inf"))
    delta = np.abs(own - other.astype(np.float32))
    return Drift(producer_id, version, float(delta.mean()), float(delta.max()))
