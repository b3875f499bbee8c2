"""A reader that gets nothing although there are records: a silent client is detected by the end of the log."""

import time
from typing import Final

from streams.errors import StreamsError
from streams.log.reader import Reader

_LOOK_EVERY_S: Final = 5.0

STALLED_S: Final = 30.0
"""A partition with records to read that gave none for so long counts as stalled."""


class Watchdog:
    """Compares, every few seconds, where a reader stands with where its partitions end.

    Kafka clients have stopped reading without an error before; restarting the service recovers from that.
    """

    def __init__(self) -> None:
        self._looked_s = time.monotonic()
        self._stands: dict[tuple[str, int], tuple[int, float]] = {}

    async def look(self, reader: Reader) -> None:
        """To be called often, after a poll that every partition had its turn in. StreamsError: one is stuck."""
        now_s = time.monotonic()
        if now_s - self._looked_s < _LOOK_EVERY_S:
            return
        self._looked_s = now_s
        ends, positions = await reader.ends(), await reader.positions()
        self.judge(positions, ends, now_s)

    def excuse(self, seconds: float) -> None:
        """For so long just now nobody wanted to read."""
        self._stands = {key: (position, since_s + seconds) for key, (position, since_s) in self._stands.items()}

    def judge(self, positions: dict[tuple[str, int], int], ends: dict[tuple[str, int], int], now_s: float) -> None:
        """StreamsError: a partition stood still below its end for STALLED_S."""
        before, self._stands = self._stands, {}
        for key, position in positions.items():
            if position >= ends[key]:
                continue
            stood, since_s = before.get(key, (position, now_s))
            since_s = since_s if stood == position else now_s
            if now_s - since_s >= STALLED_S:
                topic, partition = key
                raise StreamsError(
                    f"{topic}/{partition} ends at {ends[key]} and is read no further than {position} "
                    f"since {now_s - since_s:.0f} s"
                )
            self._stands[key] = (position, since_s)
