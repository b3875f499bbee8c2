"""The gate through which rollouts enter the engine, in the company that `Suspects` allows them."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from producers.rollouts.engine.errors import EngineDied
from producers.rollouts.suspects import Suspects
from streams.errors import Poison

logger = logging.getLogger(__name__)


@dataclass
class Attempt:
    """One rollout's try; `lost` is the engine's incarnation that ended during it, and `reason` what it ended with."""

    lost: int | None = None
    reason: str = ""


class Quarantine:
    """Lets rollouts into an engine that computes `seats` of them at once, at most.

    `clock` gives seconds during which there was an engine: one that takes minutes to start has not lived through them.
    """

    def __init__(self, seats: int, clock: Callable[[], float]) -> None:
        self._suspects = Suspects(seats)
        self._clock = clock
        self._running: dict[str, str] = {}
        self._waiting: dict[str, str] = {}
        self._admissions: dict[str, asyncio.Future[None]] = {}
        self._counted_incarnation = -1

    @property
    def limit(self) -> int:
        """Rollouts that may be in flight at once since the load killed the engine; 0: as many as there are."""
        return self._suspects.limit(self._clock()) or 0

    @property
    def suspected(self) -> int:
        """Prompts that may have killed the engine."""
        return len(self._suspects)

    @asynccontextmanager
    async def attempt(self, rollout: str, prompt: str) -> AsyncIterator[Attempt]:
        """A try, in due company. The block sets `lost` where the engine died.

        Poison: the prompt kills the engine. EngineDied: the engine dies with any prompt.
        """
        await self._enter(rollout, prompt)
        attempt = Attempt()
        try:
            yield attempt
        except BaseException:
            self._give_up(rollout, prompt)
            raise
        if attempt.lost is None:
            self._suspects.generated(prompt, len(self._running), self._clock())
        elif attempt.lost > self._counted_incarnation:
            self._counted_incarnation = attempt.lost
            logger.warning(
                "the engine died with %d rollouts of %d prompts in flight: %s",
                len(self._running), len(set(self._running.values())), attempt.reason,
            )  # fmt: skip
            self._suspects.died(self._running, self._clock())
        del self._running[rollout]
        if sick := self._suspects.sick:
            tried = ", ".join(sick)
            raise EngineDied(f"the engine dies with any prompt, tried alone were {tried}; last: {attempt.reason}")
        self._admit()

    def waits(self) -> list[str]:
        """For `status`."""
        lines = []
        if self._suspects:
            tried = ", ".join(sorted(self._running)[:3])
            lines.append(
                f"the engine died twice, {len(self._suspects)} prompts may be why: tries {tried or 'them'} apart, "
                f"{len(self._waiting)} rollouts wait meanwhile"
            )
        if limit := self.limit:
            lines.append(
                f"the engine died of its load: at most {limit} rollouts at once, more after every minute without a "
                f"death; {len(self._waiting)} wait"
            )
        return lines

    async def _enter(self, rollout: str, prompt: str) -> None:
        self._waiting[rollout] = prompt
        self._admissions[rollout] = admitted = asyncio.get_running_loop().create_future()
        self._admit()
        try:
            await admitted
        except BaseException:
            self._give_up(rollout, prompt)
            raise

    def _give_up(self, rollout: str, prompt: str) -> None:
        for place in (self._waiting, self._running):
            place.pop(rollout, None)
        self._admissions.pop(rollout, None)
        if prompt not in self._waiting.values() and prompt not in self._running.values():
            self._suspects.forget(prompt, self._clock())
        self._admit()

    def _admit(self) -> None:
        for rollout in self._suspects.admit(self._waiting, self._running, self._clock()):
            self._running[rollout] = self._waiting.pop(rollout)
            admitted = self._admissions.pop(rollout)
            if not admitted.done():
                admitted.set_result(None)
        for rollout, prompt in self._waiting.items():
            deaths = self._suspects.condemned(prompt)
            admitted = self._admissions[rollout]
            if deaths and not admitted.done():
                what = f"the engine died {deaths} times while this prompt was in flight"
                admitted.set_exception(Poison(f"{what}, the last time with it alone"))
        for finding in self._suspects.findings:
            logger.warning(finding)
        self._suspects.findings.clear()
