"""When to start a dead process again, and when to give up. Pure: lifetimes and causes in, delays out.

Three kinds of end. A service that had done its work for a while (`quick_s` since it was ready) was hit by something,
and is started again at once. One that ends before, for its own fault, is tried a few times with growing delays, and
then it is beyond help. One whose cause lies outside (no room on a disk, no broker) is tried with growing delays for as
long as that lasts: these ends are not counted, because a run of weeks must outlive a disk that is full over night.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class RestartPolicy:
    """Exponential back-off: `first_s`, doubled by each failure of a kind in a row up to `max_s`.

    What was ready for less than `quick_s` seconds is a quick failure; `quick_failures` of them in a row are the end.
    """

    first_s: float
    max_s: float
    quick_s: float
    quick_failures: int


class Restarts:
    """The failures of one unit."""

    def __init__(self, policy: RestartPolicy) -> None:
        self._policy = policy
        self._outside = 0
        self.quick = 0

    def failed(self, served_s: float, outside: bool = False) -> float | None:
        """Seconds to wait before the next start, None where it is not worth another try.

        `served_s`: for how long it had been ready, 0 where it never was. `outside`: the cause lies outside.
        """
        if served_s >= self._policy.quick_s:
            self.quick = self._outside = 0
            return 0.0
        if outside:
            self._outside += 1
            return self._delay_s(self._outside)
        self._outside = 0
        self.quick += 1
        return None if self.quick >= self._policy.quick_failures else self._delay_s(self.quick)

    def _delay_s(self, failures: int) -> float:
        return float(min(self._policy.max_s, self._policy.first_s * 2.0 ** min(failures - 1, 60)))
