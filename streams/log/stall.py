"""Detects a reader that gets nothing although there is something, by comparing its position with the log's end."""

import time
from typing import Final

from streams.errors import StreamsError
from streams.log.reader import Reader

_CHECK_EVERY_S: Final = 5.0

STALLED_S: Final = 30.0
"""A partition that has records to read and gave none for so long counts as stuck."""


class StallDetector:
    """Compares, every few seconds, where a reader stands with where its partitions end.

    Kafka's clients have stopped reading without an error (aio-libs/aiokafka#983, #847); a restart of the service ends
    that.
    """

    def __init__(self) -> None:
        self._checked_s = time.monotonic()
        self._behind: dict[tuple[str, int], tuple[int, float]] = {}
        """Partitions below their end: the position, and since when it has been that (monotonic seconds)."""

    async def check(self, reader: Reader) -> None:
        """Call it often, after a poll to which every partition could have added. StreamsError: one is stuck."""
        now_s = time.monotonic()
        if now_s - self._checked_s < _CHECK_EVERY_S:
            return
        self._checked_s = now_s
        ends, positions = await reader.ends(), await reader.positions()
        self.compare(positions, ends, now_s)

    def excuse(self, seconds: float) -> None:
        """Leave out the last `seconds`, in which nobody wanted to read."""
        self._behind = {key: (position, since_s + seconds) for key, (position, since_s) in self._behind.items()}

    def compare(self, positions: dict[tuple[str, int], int], ends: dict[tuple[str, int], int], now_s: float) -> None:
        """StreamsError: a partition has stood still below its end for STALLED_S."""
        before, self._behind = self._behind, {}
        for key, position in positions.items():
            if position >= ends[key]:
                continue
            previous, since_s = before.get(key, (position, now_s))
            since_s = since_s if previous == position else now_s
            if now_s - since_s >= STALLED_S:
                topic, partition = key
                raise StreamsError(
                    f"{topic}/{partition} ends at {ends[key]} and has been read no further than {position} "
                    f"for {now_s - since_s:.0f} s"
                )
            self._behind[key] = (position, since_s)
