"""Whether the loops of a service still turn, judged from outside of them.

Every call of such a loop has a deadline, and its end without an error is one (`streams.cancellation`); this is for what
neither sees: a service whose loop has not come round for SILENT_S is not ready, whatever the loop itself believes.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

SILENT_S: Final = 60.0
"""Longer than any call of a loop may take: the log's deadlines are 30 s."""


class Progress:
    """One loop, and when it last came round. `what` says what it does, as in "reads scores"."""

    def __init__(self, what: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.what = what
        self._clock = clock
        self._turned_s = clock()
        self._resting = 0

    def turn(self) -> None:
        """The loop came round."""
        self._turned_s = self._clock()

    @contextmanager
    def resting(self) -> Iterator[None]:
        """What is awaited meanwhile may take as long as it takes: a free place, a consumer of what was read."""
        self._resting += 1
        try:
            yield
        finally:
            self._resting -= 1
            self.turn()

    def silent_s(self) -> float:
        """Seconds since the last turn where these are more than SILENT_S, else 0."""
        silent_s = 0.0 if self._resting else self._clock() - self._turned_s
        return silent_s if silent_s > SILENT_S else 0.0
