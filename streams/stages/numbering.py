"""Which of the numbers on a log are its own writer's, who counts without a gap and never twice."""

from collections import deque
from typing import Final, Generic, TypeVar

_T = TypeVar("_T")

_MOST_RUNS: Final = 64


class Numbering(Generic[_T]):
    """Numbers in log order in; the longest run of consecutive ones out, with the last `kept` of its items. Pure.

    A batch that another program wrote has a number that does not follow the batcher's. If that were believed, the
    batcher would count on from there, and the learner would wait indefinitely for the numbers between.
    """

    def __init__(self, kept: int = 1) -> None:
        self._kept = kept
        self._runs: dict[int, tuple[int, deque[_T]]] = {}
        self._length = 0
        self._items: deque[_T] = deque(maxlen=kept)
        self.next = 0

    @property
    def items(self) -> tuple[_T, ...]:
        """Of the longest run, in order; of two equally long ones the one that reached that length first."""
        return tuple(self._items)

    def add(self, number: int, item: _T) -> None:
        """The next number on the log, and what is to be kept of its record."""
        length, items = self._runs.pop(number, (0, deque(maxlen=self._kept)))
        length += 1
        items.append(item)
        if length >= self._runs.get(number + 1, (0, items))[0]:
            self._runs[number + 1] = (length, items)
        if length > self._length:
            self._length, self.next, self._items = length, number + 1, items
        if len(self._runs) > _MOST_RUNS:
            del self._runs[next(end for end in self._runs if end != self.next)]
