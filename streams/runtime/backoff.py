"""Exponential back-off: how long to wait before the next try of what has failed. Pure."""

from dataclasses import dataclass
from typing import Final

_MAX_DOUBLINGS: Final = 60
"""Far beyond any `max_s`; larger powers of two would only cost memory, and at 1,024 the range of a float."""


@dataclass(frozen=True)
class Backoff:
    """`first_s` seconds after the first failure, doubled by each further one in a row up to `max_s`."""

    first_s: float
    max_s: float

    def delay_s(self, failures: int) -> float:
        """Seconds to wait after `failures` failures in a row, at least 1."""
        return float(min(self.max_s, self.first_s * 2.0 ** min(failures - 1, _MAX_DOUBLINGS)))
