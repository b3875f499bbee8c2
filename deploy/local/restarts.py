"""When to start a dead process again, and when to give up. Pure: lifetimes and causes in, delays out.

Four kinds of end. A service that had done its work for a while (`quick_s` since it was ready) was hit by something,
and is started again at once. One that keeps dying of its own fault so, more than `deaths` times in `window_s`, is
started with growing delays, for each life that it does not survive costs the others something. One that ends before,
for its own fault, is tried a few times with growing delays, and then it is beyond help. One whose cause lies outside
(no room on a disk, no broker) is tried with growing delays for as long as that lasts: these ends are not counted,
because a run of weeks must outlive a disk that is full over night.
"""

from collections import deque
from dataclasses import dataclass
from signal import SIGKILL, SIGTERM
from typing import Final

STRUCK: Final = (0, -SIGTERM, -SIGKILL, 128 + SIGTERM)
"""How a process ends that somebody stopped or killed: a service that drained has the code 0, a JVM 143."""


@dataclass(frozen=True)
class RestartPolicy:
    """Exponential back-off: `first_s`, doubled by each failure of a kind in a row up to `max_s`.

    What was ready for less than `quick_s` seconds is a quick failure; `quick_failures` of them in a row are the end.
    What was ready for longer is delayed too where it died of its own fault more than `deaths` times in `window_s`
    seconds of its life.
    """

    first_s: float
    max_s: float
    quick_s: float
    quick_failures: int
    deaths: int = 5
    window_s: float = 600.0


class Restarts:
    """The failures of one unit."""

    def __init__(self, policy: RestartPolicy) -> None:
        self._policy = policy
        self._outside = 0
        self._lived_s = 0.0
        self._deaths: deque[float] = deque()
        self.quick = 0

    @property
    def deaths(self) -> int:
        """How often it died of its own fault within the last `window_s`, after it had been at work."""
        return len(self._deaths)

    def failed(self, served_s: float, outside: bool = False, struck: bool = False) -> float | None:
        """Seconds to wait before the next start, None where it is not worth another try.

        `served_s`: for how long it had been ready, 0 where it never was. `outside`: the cause lies outside. `struck`:
        somebody ended it, with a signal or by asking it to stop.
        """
        delay_s = self._delay_after(served_s, outside, struck)
        self._lived_s += served_s + (delay_s or 0.0)
        return delay_s

    def _delay_after(self, served_s: float, outside: bool, struck: bool) -> float | None:
        if served_s >= self._policy.quick_s:
            self.quick = self._outside = 0
            return 0.0 if outside or struck else self._delay_of_death(self._lived_s + served_s)
        if outside:
            self._outside += 1
            return self._delay_s(self._outside)
        self._outside = 0
        self.quick += 1
        return None if self.quick >= self._policy.quick_failures else self._delay_s(self.quick)

    def _delay_of_death(self, now_s: float) -> float:
        self._deaths.append(now_s)
        while self._deaths[0] < now_s - self._policy.window_s:
            self._deaths.popleft()
        excess = len(self._deaths) - self._policy.deaths
        return self._delay_s(excess) if excess > 0 else 0.0

    def _delay_s(self, failures: int) -> float:
        return float(min(self._policy.max_s, self._policy.first_s * 2.0 ** min(failures - 1, 60)))
