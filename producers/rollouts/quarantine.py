"""Which prompt kills the engine, and in what company a prompt may be tried again.

A prompt is generated at once, unless the engine keeps dying: then `Suspects`, a search without I/O among those that
were in flight when it died, says who may be tried with whom, and `Quarantine` holds the others back.
"""

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from streams.errors import Poison

NARROWING: Final = 16


class Suspects:
    """Deaths by prompt (its key), and in what company a prompt may be tried again.

    One death accuses nobody. Who was in flight at two is a suspect: nothing else is generated until it was tried in a
    cohort of a sixteenth of the company in which the engine died, then of a sixteenth of that, down to alone. The
    cohort that survives is innocent; who kills alone is condemned. With 256 in flight that is four deaths at most for
    one killer, and not one try for each of the 256.
    """

    def __init__(self) -> None:
        self._deaths: dict[str, int] = {}
        self._company: dict[str, int] = {}
        self._condemned: set[str] = set()

    def __len__(self) -> int:
        return len(self._company)

    def died(self, cohort: Collection[str]) -> None:
        """The engine died with `cohort` in flight."""
        for key in cohort:
            self._deaths[key] = self._deaths.get(key, 0) + 1
            if self._deaths[key] < 2:
                continue
            if len(cohort) == 1:
                self._condemned.add(key)
                self._company.pop(key, None)
            else:
                self._company[key] = max(1, len(cohort) // NARROWING)

    def clear(self, key: str) -> None:
        """It was generated, or is given up: nothing is held against it any more."""
        self._deaths.pop(key, None)
        self._company.pop(key, None)
        self._condemned.discard(key)

    def deaths(self, key: str) -> int:
        """How often the engine died with it in flight."""
        return self._deaths.get(key, 0)

    def is_condemned(self, key: str) -> bool:
        """Whether it has killed the engine twice, the last time alone."""
        return key in self._condemned

    def admitted(self, waiting: Sequence[str], running: Collection[str]) -> list[str]:
        """Who of `waiting` may start now, in order."""
        if not self._company:
            return list(waiting)
        suspects = [key for key in waiting if key in self._company]
        if running or not suspects:
            return []
        smallest = min(self._company[key] for key in suspects)
        return [key for key in suspects if self._company[key] == smallest][:smallest]


@dataclass
class Attempt:
    """One prompt's try; `lost` is the engine's incarnation that ended during it."""

    lost: int | None = None


class Quarantine:
    """Lets prompts, by key, into the engine."""

    def __init__(self) -> None:
        self._suspects = Suspects()
        self._running: set[str] = set()
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._counted_incarnation = -1

    @asynccontextmanager
    async def attempt(self, key: str) -> AsyncIterator[Attempt]:
        """A try, in due company. The block sets `lost` where the engine died. Poison: it kills the engine."""
        await self._enter(key)
        attempt = Attempt()
        try:
            yield attempt
        finally:
            if attempt.lost is None:
                self._suspects.clear(key)
            elif attempt.lost > self._counted_incarnation:
                self._counted_incarnation = attempt.lost
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
        self._waiting[key] = admitted = asyncio.get_running_loop().create_future()
        self._admit()
        try:
            await admitted
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
