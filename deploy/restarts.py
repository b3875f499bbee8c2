"""When to start a dead process again, and when to give up. Pure: lifetimes in, delays out."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RestartPolicy:
    """Exponential back-off: `first_s`, doubled by each quick failure in a row up to `max_s`.

    A life shorter than `quick_s` seconds is a quick failure; `quick_failures` of them in a row are the end.
    """

    first_s: float
    max_s: float
    quick_s: float
    quick_failures: int


class Restarts:
    """The failures of one unit."""

    def __init__(self, policy: RestartPolicy) -> None:
        self._policy = policy
        self.quick = 0

    def failed(self, lived_s: float) -> float | None:
        """Seconds to wait before the next start; None where it is not worth another try."""
        self.quick = self.quick + 1 if lived_s < self._policy.quick_s else 1
        if self.quick >= self._policy.quick_failures and lived_s < self._policy.quick_s:
            return None
        return float(min(self._policy.max_s, self._policy.first_s * 2 ** (self.quick - 1)))
