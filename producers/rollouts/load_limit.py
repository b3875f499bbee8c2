"""How many rollouts may be in flight at once, once the engine has died of too many: half of those, then slowly more.

none ──the load killed it──▶ half of the company in which it died ──a minute without a death──▶ an eighth of it more …
"""

from dataclasses import dataclass
from typing import Final

QUIET_S: Final = 60.0
"""The limit rises once for each such time without a death."""

FORGET_S: Final = 3600.0
"""So long after the last death what killed is forgotten: what an engine bears changes with lengths and weights."""

_STEPS: Final = 8


@dataclass(frozen=True, slots=True)
class LoadLimit:
    """Additive increase, multiplicative decrease. A company is a number of rollouts in flight.

    Never above what killed twice: two deaths in companies of at most `n` keep it below `n` for an hour. So it is at
    least half of what the engine bears, and goes beyond that a few times an hour and not once every few minutes.
    """

    seats: int
    """Rollouts that the engine computes in one step; more in flight only queue."""
    lowered_to: int | None = None
    since_s: float = 0.0
    killed: tuple[int, ...] = ()
    """The two smallest companies in which the engine died of its load."""

    def lowered(self, company: int, now_s: float) -> "LoadLimit":
        """After a death of the load in flight, `company`."""
        company = min(company, self.seats)
        killed = self.killed if now_s - self.since_s < FORGET_S else ()
        return LoadLimit(self.seats, max(1, company // 2), now_s, tuple(sorted([*killed, company])[:2]))

    def at(self, now_s: float) -> int | None:
        """Rollouts that may be in flight; None: as many as there are."""
        if self.lowered_to is None:
            return None
        quiet_s = now_s - self.since_s
        limit = self._risen(self.lowered_to, quiet_s)
        if len(self.killed) == 2:
            limit = min(max(1, self.killed[1] - 1), self._risen(self.lowered_to, min(quiet_s, FORGET_S)))
            if quiet_s < FORGET_S:
                return limit
            limit = self._risen(limit, quiet_s - FORGET_S)
        return limit if limit < self.seats else None

    def _risen(self, limit: int, quiet_s: float) -> int:
        return limit + max(0, int(quiet_s / QUIET_S)) * max(1, (self.lowered_to or 0) // _STEPS)
