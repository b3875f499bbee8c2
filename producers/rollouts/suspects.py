"""Which prompt kills the engine: a search among those that were in flight when it died, without I/O."""

from collections.abc import Collection, Sequence
from typing import Final

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
