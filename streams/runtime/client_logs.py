"""What Kafka's clients log, thinned out: while a broker is away each of them says so several times a second.

Thirty clients would write ten thousand lines a minute, onto a disk that may be the reason, with CPU that the broker
needs to start.
"""

import logging
import time
from typing import Final

_CLIENTS: Final = ("aiokafka", "kafka")
_AGAIN_S: Final = 10.0


class ThinOut(logging.Filter):
    """For a handler: lets a client's message through once in ten seconds, and everything else always."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """See `logging.Filter`. Messages are the same if their format strings are."""
        if record.name.partition(".")[0] not in _CLIENTS:
            return True
        key, now_s = (record.name, str(record.msg)), time.monotonic()
        if now_s - self._said.get(key, -_AGAIN_S) < _AGAIN_S:
            return False
        self._said[key] = now_s
        return True
