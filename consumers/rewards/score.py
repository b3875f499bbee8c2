"""The reward worker: one rollout in, its score out."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final, TypeVar

from consumers.rewards.detokenise import Detokeniser
from consumers.rewards.penalties import corrected, overlong, repetition
from consumers.rewards.pool import VerifierPool
from consumers.rewards.settings import RewardSettings
from consumers.rewards.verifiers import Sample, VerifierError, is_pooled, load
from schemas import Event, RewardComponent, RolloutCompleted, RolloutScored
from streams.errors import Poison
from streams.record import Output, Record
from streams.stages.worker import Emit
from streams.telemetry import names, tracing

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

_LONG_TOKENS: Final = 2048
"""From this length on, text and n-grams are computed in a thread: on the event loop they would block other rollouts."""


class RewardWorker:
    """A `streams.stages.worker.Worker` over `rollouts`: detokenises, verifies, adds the penalties, writes
    RolloutScored.
    """

    def __init__(
        self,
        settings: RewardSettings,
        detokeniser: Detokeniser,
        pool: VerifierPool,
        gauge: Callable[[str, float], None] = lambda name, value: None,
    ) -> None:
        """`gauge` is called with the number of scored rollouts and of those without a verdict."""
        self._settings = settings
        self._detokeniser = detokeniser
        self._pool = pool
        self._gauge = gauge
        self._scored = 0
        self._without_verdict = 0

    async def handle(self, event: Event, record: Record, emit: Emit) -> None:
        """Scores one rollout. Raises Poison for another event; without a verdict the score has valid=False."""
        if not isinstance(event, RolloutCompleted):
            raise Poison(f"{type(event).__name__} is not RolloutCompleted")
        attributes = {names.GROUP: event.group_id, names.ROLLOUT: event.rollout_id}
        with tracing.span(names.REWARD, attributes=attributes):
            scored = await self.score(event, record)
        await emit(Output("scores", scored, key=event.group_id, cause=record))
        self._count(scored)

    async def score(self, rollout: RolloutCompleted, record: Record) -> RolloutScored:
        """The score of `rollout`, which was read from `record`."""
        try:
            passed = await self._verify(rollout)
        except VerifierError as error:
            return _scored(rollout, record, None, (), str(error))
        verdict = RewardComponent(name=rollout.verifier, version=load(rollout.verifier).VERSION, value=passed)
        penalties = await _off_the_loop(rollout, self._penalties)
        return _scored(rollout, record, passed, (verdict, *penalties), None)

    async def _verify(self, rollout: RolloutCompleted) -> float:
        verifier = load(rollout.verifier)
        if rollout.finish_reason == "length" and self._settings.truncated == "wrong":
            return 0.0
        text = await _off_the_loop(rollout, self._text)
        sample = Sample(text, rollout.reference)
        if is_pooled(rollout.verifier):
            return await self._pool.check(rollout.verifier, sample)
        return verifier.check(sample)

    def _text(self, rollout: RolloutCompleted) -> str:
        """What the policy said: what a tool answered is no merit of it, and may even state the reference.

        Each run of sampled tokens is a line of its own, so that two of them do not make one word or number.
        """
        return "\n".join(map(self._detokeniser.text, rollout.sampled_runs))

    def _count(self, scored: RolloutScored) -> None:
        self._scored += 1
        if not scored.valid:
            self._without_verdict += 1
            logger.warning("rollout %s has no verdict: %s", scored.rollout_id, scored.error)
        self._gauge("scored", self._scored)
        self._gauge("without_verdict", self._without_verdict)

    def _penalties(self, rollout: RolloutCompleted) -> tuple[RewardComponent, ...]:
        components = []
        length, repeats = self._settings.length, self._settings.repetition
        if length.weight > 0:
            value = overlong(rollout.sampled_tokens, rollout.sampling.max_tokens, length.share)
            components.append(
                RewardComponent(name="length", version=f"1:{length.share:g}", value=value, weight=length.weight)
            )
        if repeats.weight > 0:
            value = repetition([run.numpy().tolist() for run in rollout.sampled_runs], repeats.ngram_tokens)
            components.append(
                RewardComponent(
                    name="repetition", version=f"1:{repeats.ngram_tokens}", value=value, weight=repeats.weight
                )
            )
        return tuple(components)


async def _off_the_loop(rollout: RolloutCompleted, work: Callable[[RolloutCompleted], _T]) -> _T:
    if rollout.response_ids.shape[0] < _LONG_TOKENS:
        return work(rollout)
    return await asyncio.to_thread(work, rollout)


def _scored(
    rollout: RolloutCompleted,
    record: Record,
    passed: float | None,
    components: tuple[RewardComponent, ...],
    error: str | None,
) -> RolloutScored:
    versions = rollout.sampled_versions
    return RolloutScored(
        rollout_id=rollout.rollout_id,
        group_id=rollout.group_id,
        prompt_id=rollout.prompt_id,
        index=rollout.index,
        attempt=rollout.attempt,
        rollout=record.ref,
        task=rollout.task,
        samples=rollout.samples,
        deadline_s=rollout.deadline_s,
        valid=error is None,
        time_s=time.time(),
        reward=corrected(components),
        passed=passed,
        components=components,
        error=error,
        prompt_tokens=rollout.prompt_ids.shape[0],
        response_tokens=rollout.response_ids.shape[0],
        oldest_version=min(versions),
        newest_version=max(versions),
        finish_reason=rollout.finish_reason,
        purpose=rollout.purpose,
        evaluation=rollout.evaluation,
        requested_s=rollout.requested_s,
        sampled_tokens=None if rollout.loss_mask is None else rollout.sampled_tokens,
    )
