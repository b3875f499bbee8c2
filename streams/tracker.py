"""Which input offsets are done: low watermark, finished set above it, and their encoding into commit metadata.

A stage finishes records out of order. What may be committed is the lowest unfinished offset; what is finished above it
travels in the commit's metadata (DESIGN section 5), so that a restart re-processes exactly the unfinished records.
"""

import base64
import binascii
from typing import Final

METADATA_LIMIT_BYTES: Final = 4096
"""The broker's default `offset.metadata.max.bytes`."""

MAX_SPAN: Final = 20_000
"""Offsets between the lowest unfinished and the newest begun at which a stage must stop its intake.

As a bitmap in base64 this is 3,334 characters, inside METADATA_LIMIT_BYTES whatever the pattern.
"""


class OffsetTracker:
    """The progress of one partition. Pure: no clock, no I/O.

    Offsets are begun in log order. Offsets that never come (transaction markers, compacted records) count as finished
    once a later one is begun.
    """

    def __init__(self, start: int) -> None:
        if start < 0:
            raise ValueError(f"start offset {start} is negative")
        self._seen = start
        self._open: dict[int, None] = {}
        self._ahead: set[int] = set()  # restored as finished and not delivered again yet
        self._ahead_top = start

    def begin(self, offset: int) -> None:
        """`offset` was delivered. ValueError: it was begun before, or is finished, or comes out of order."""
        if offset < self._seen:
            raise ValueError(f"offset {offset} is begun after offset {self._seen - 1}")
        if offset in self._ahead:
            raise ValueError(f"offset {offset} is already finished")
        if self._ahead and offset > self._ahead_top:
            self._ahead.clear()
        self._open[offset] = None
        self._seen = offset + 1

    def finish(self, offset: int) -> None:
        """Everything that `offset` asks for is done. ValueError: it is not open."""
        if offset not in self._open:
            raise ValueError(f"offset {offset} is finished but not open")
        del self._open[offset]

    def advance(self, position: int) -> None:
        """Every offset below `position` was delivered, and begun where it needed work, or will never come.

        At the end of a partition this passes the transaction markers after the last record, so that the lag of a stage
        that has nothing to do is 0. A position below what was begun changes nothing.
        """
        if self._ahead and position > self._ahead_top:
            self._ahead.clear()
        self._seen = max(self._seen, position)

    def is_finished(self, offset: int) -> bool:
        """Whether a delivered `offset` needs no work any more."""
        if offset < self._seen:
            return offset not in self._open
        return offset in self._ahead

    @property
    def unfinished(self) -> int:
        """How many begun offsets are open."""
        return len(self._open)

    @property
    def span(self) -> int:
        """Offsets from the lowest unfinished to the newest begun; a stage stops its intake at MAX_SPAN."""
        return self._seen - self._watermark()

    def _watermark(self) -> int:
        # Offsets are begun in increasing order, so the first open one in insertion order is the lowest.
        low = next(iter(self._open), None)
        if low is not None:
            return low
        low = self._seen
        while low in self._ahead:
            low += 1
        return low

    def commit(self) -> tuple[int, str]:
        """`(offset, metadata)`: the lowest unfinished offset, and the finished ones above it, encoded."""
        low = self._watermark()
        top = max(self._seen - 1, self._ahead_top if self._ahead else 0)
        finished = [
            offset not in self._open if offset < self._seen else offset in self._ahead for offset in range(low, top + 1)
        ]
        return low, _encode(finished)

    @classmethod
    def restore(cls, offset: int, metadata: str) -> "OffsetTracker":
        """The tracker that committed `(offset, metadata)`. ValueError: metadata that no tracker wrote."""
        tracker = cls(offset)
        tracker._ahead = {offset + i for i, finished in enumerate(_decode(metadata)) if finished}
        tracker._ahead_top = max(tracker._ahead, default=offset)
        return tracker


def _encode(finished: list[bool]) -> str:
    """`b:` and the bits from the lowest unfinished offset on, least significant first, in base64; '' if none is set."""
    if not any(finished):
        return ""
    bits = bytearray((len(finished) + 7) // 8)
    for i, flag in enumerate(finished):
        if flag:
            bits[i >> 3] |= 1 << (i & 7)
    return "b:" + base64.b64encode(bytes(bits).rstrip(b"\0")).decode("ascii")


def _decode(metadata: str) -> list[bool]:
    if not metadata:
        return []
    if not metadata.startswith("b:"):
        raise ValueError(f"commit metadata {metadata[:40]!r} was not written by an offset tracker")
    try:
        bits = base64.b64decode(metadata[2:], validate=True)
    except binascii.Error as error:
        raise ValueError(f"commit metadata {metadata[:40]!r} was not written by an offset tracker: {error}") from error
    return [bool(byte >> i & 1) for byte in bits for i in range(8)]
