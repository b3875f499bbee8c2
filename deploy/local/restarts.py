"""When to restart a process that has ended, and when to give up. Pure: times served and causes in, delays out.

There are four cases:

- It had been ready for at least `quick_s` and something ended it from outside: it is restarted at once.
- It had been ready for as long and failed through its own fault: at once too, but with growing delays after more than
  `deaths` such failures in `window_s`, since each restart costs the other services something.
- It failed earlier, through its own fault: a few tries with growing delays, and then the run ends.
- The cause lies outside (no room on a disk, no broker): growing delays as long as that lasts. These failures are not
  counted, because a run of weeks must survive a disk that is full overnight.
"""

from collections import deque
from dataclasses import dataclass
from signal import SIGKILL, SIGTERM
from typing import Final

from streams.runtime.backoff import Backoff

STRUCK: Final = (0, -SIGTERM, -SIGKILL, 128 + SIGTERM)
"""Exit codes of a process that somebody stopped or killed: 0 of a service that drained, 143 of a JVM."""


@dataclass(frozen=True)
class RestartPolicy(Backoff):
    """The back-off between restarts, and when there are no more.

    A process that was ready for less than `quick_s` seconds is a quick failure; after `quick_failures` of them in a row
    it is not restarted. One that was ready for longer is delayed only where it failed through its own fault more than
    `deaths` times within `window_s` seconds.
    """

    quick_s: float
    quick_failures: int
    deaths: int = 5
    window_s: float = 600.0


class Restarts:
    """The failures of one unit so far, and what follows from the next one."""

    def __init__(self, policy: RestartPolicy) -> None:
        self._policy = policy
        self._outside = 0
        self._served_s = 0.0
        self._deaths: deque[float] = deque()
        self.quick = 0

    @property
    def deaths(self) -> int:
        """Failures through its own fault within the last `window_s`, each after it had been ready for `quick_s`."""
        return len(self._deaths)

    def failed(self, served_s: float, outside: bool = False, struck: bool = False) -> float | None:
        """Seconds to wait before the next start; None: give up.

        `served_s`: seconds for which it had been ready, 0 where it never was. `outside`: the cause lies outside.
        `struck`: somebody ended it, with a signal or by asking it to stop.
        """
        delay_s = self._delay_after(served_s, outside, struck)
        self._served_s += served_s + (delay_s or 0.0)
        return delay_s

    def _delay_after(self, served_s: float, outside: bool, struck: bool) -> float | None:
        if served_s >= self._policy.quick_s:
            self.quick = self._outside = 0
            return 0.0 if outside or struck else self._delay_of_death(self._served_s + served_s)
        if outside:
            self._outside += 1
            return self._policy.delay_s(self._outside)
        self._outside = 0
        self.quick += 1
        return None if self.quick >= self._policy.quick_failures else self._policy.delay_s(self.quick)

    def _delay_of_death(self, now_s: float) -> float:
        self._deaths.append(now_s)
        while self._deaths[0] < now_s - self._policy.window_s:
            self._deaths.popleft()
        excess = len(self._deaths) - self._policy.deaths
        return self._policy.delay_s(excess) if excess > 0 else 0.0
