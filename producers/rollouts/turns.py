"""When a prompt may be generated: at once, unless the engine keeps dying and it has to be found out of what."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from producers.rollouts.suspects import Suspects
from streams.errors import Poison


@dataclass
class Turn:
    """One prompt's try; `lost` is the engine's incarnation that ended during it."""

    lost: int | None = None


class Turns:
    """Lets prompts, by key, into the engine."""

    def __init__(self) -> None:
        self._suspects = Suspects()
        self._running: set[str] = set()
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._buried = -1

    @asynccontextmanager
    async def turn(self, key: str) -> AsyncIterator[Turn]:
        """A try, in due company. The block sets `lost` where the engine died. Poison: it kills the engine."""
        await self._enter(key)
        turn = Turn()
        try:
            yield turn
        finally:
            if turn.lost is None:
                self._suspects.clear(key)
            elif turn.lost > self._buried:
                self._buried = turn.lost
                self._suspects.died(self._running)
            self._running.discard(key)
            self._admit()
        if self._suspects.is_condemned(key):
            deaths = self._suspects.deaths(key)
            self._suspects.clear(key)
            self._admit()
            raise Poison(f"the engine died {deaths} times while this prompt was in flight, the last time with it alone")

    def waits(self) -> list[str]:
        """For `status`."""
        if not self._suspects:
            return []
        tried = ", ".join(sorted(self._running)[:3])
        return [
            f"the engine died twice with {len(self._suspects)} prompts in flight: tries {tried or 'them'} apart, "
            f"{len(self._waiting)} prompts wait meanwhile"
        ]

    async def _enter(self, key: str) -> None:
        self._waiting[key] = turn = asyncio.get_running_loop().create_future()
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            self._waiting.pop(key, None)
            self._running.discard(key)
            self._suspects.clear(key)
            self._admit()
            raise

    def _admit(self) -> None:
        for key in self._suspects.admitted(list(self._waiting), self._running):
            self._running.add(key)
            waiting = self._waiting.pop(key)
            if not waiting.done():
                waiting.set_result(None)
