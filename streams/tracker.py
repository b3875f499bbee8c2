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
"""Offsets between the lowest unfinished and the newest begun that fit the metadata whatever the pattern.

As a bitmap in base64 they are 3,334 characters.
"""

MAX_LISTED_SPAN: Final = 2_000_000
"""Offsets beyond which a stage stops its intake however few are unfinished: a restart reads them again."""

MAX_LISTED_BYTES: Final = 1_800
"""Size of the list of unfinished offsets at which a stage with a span above MAX_SPAN stops its intake.

3,070 bytes fit the metadata in base64; the rest is for what one more poll brings after the stage looked.
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
        # Restored, and not delivered again yet: up to `_top` all is finished but the holes.
        self._holes: dict[int, None] = {}
        self._top = start - 1

    def begin(self, offset: int) -> None:
        """`offset` was delivered. ValueError: it was begun before, or is finished, or comes out of order."""
        if offset < self._seen:
            raise ValueError(f"offset {offset} is begun after offset {self._seen - 1}")
        if self.is_finished(offset):
            raise ValueError(f"offset {offset} is already finished")
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
        self._seen = max(self._seen, position)

    def is_finished(self, offset: int) -> bool:
        """Whether a delivered `offset` needs no work any more."""
        if offset < self._seen:
            return offset not in self._open
        return offset <= self._top and offset not in self._holes

    @property
    def position(self) -> int:
        """The next offset to be delivered: everything below was begun or needs no work."""
        return self._seen

    @property
    def unfinished(self) -> int:
        """How many begun offsets are open."""
        return len(self._open)

    @property
    def span(self) -> int:
        """Offsets from the lowest unfinished to the newest begun."""
        return self._seen - self._watermark()

    @property
    def full(self) -> bool:
        """Whether a stage must begin no more until some are finished: the metadata would not hold it.

        What is finished meanwhile only makes the list shorter.
        """
        return self.full_with(0)

    def full_with(self, ahead: int) -> bool:
        """`full`, for a stage that has read `ahead` records more, and will begin them."""
        if self.span + ahead < MAX_SPAN:
            return False
        listed_bytes = ahead + len(_gaps(self._watermark(), self._unfinished()))
        return self.span >= MAX_LISTED_SPAN or listed_bytes >= MAX_LISTED_BYTES

    def _unfinished(self) -> list[int]:
        """In order: begun and open, then those that are to be delivered again."""
        return [*self._open, *(hole for hole in self._holes if hole >= self._seen)]

    def _watermark(self) -> int:
        # Both are in increasing order, so the first one is the lowest.
        low = next(iter(self._open), None)
        if low is None:
            low = next((hole for hole in self._holes if hole >= self._seen), None)
        return max(self._seen, self._top + 1) if low is None else low

    def commit(self) -> tuple[int, str]:
        """`(offset, metadata)`: the lowest unfinished offset, and the finished ones above it, encoded."""
        low, unfinished = self._watermark(), self._unfinished()
        top = max(self._seen - 1, self._top)
        while unfinished and unfinished[-1] == top:
            unfinished.pop()
            top -= 1
        return low, _encode(low, top, unfinished)

    @classmethod
    def restore(cls, offset: int, metadata: str) -> "OffsetTracker":
        """The tracker that committed `(offset, metadata)`. ValueError: metadata that no tracker wrote."""
        tracker = cls(offset)
        tracker._top, holes = _decode(offset, metadata)
        tracker._holes = dict.fromkeys(holes)
        return tracker


def _encode(low: int, top: int, unfinished: list[int]) -> str:
    """What is finished from `low` to `top`, which is the last finished one; '' if nothing is.

    `b:` and the bits of the finished offsets from `low` on, least significant first; or, where that is shorter, `u:`
    and the gaps before the unfinished ones, then the one before `top`, as LEB128 numbers. Both in base64.
    """
    if top <= low:
        return ""
    listed = _gaps(low, [*unfinished, top])
    if len(listed) <= (top - low + 8) // 8:
        return "u:" + base64.b64encode(listed).decode("ascii")
    bits = bytearray(b"\xff" * ((top - low + 8) // 8))
    bits[-1] >>= -(top - low + 1) % 8
    for offset in unfinished:
        bits[(offset - low) >> 3] &= ~(1 << ((offset - low) & 7))
    return "b:" + base64.b64encode(bits).decode("ascii")


def _decode(low: int, metadata: str) -> tuple[int, list[int]]:
    """The last finished offset (below `low` if there is none), and the unfinished ones before it."""
    if not metadata:
        return low - 1, []
    try:
        kind, data = metadata[:2], base64.b64decode(metadata[2:], validate=True)
        if kind == "u:":
            *unfinished, top = _from_gaps(low, data)
            return top, unfinished
        if kind == "b:":
            finished = [low + i for i in range(8 * len(data)) if data[i >> 3] >> (i & 7) & 1]
            known = set(finished)
            return finished[-1], [offset for offset in range(low, finished[-1]) if offset not in known]
    except (binascii.Error, IndexError, ValueError) as error:
        raise ValueError(f"commit metadata {metadata[:40]!r} was not written by an offset tracker: {error}") from error
    raise ValueError(f"commit metadata {metadata[:40]!r} was not written by an offset tracker")


def _gaps(low: int, offsets: list[int]) -> bytes:
    """LEB128 numbers: how many offsets lie between each and the one before it (the first: and `low`)."""
    encoded = bytearray()
    expected = low
    for offset in offsets:
        gap, expected = offset - expected, offset + 1
        while gap > 127:
            encoded.append(gap & 127 | 128)
            gap >>= 7
        encoded.append(gap)
    return bytes(encoded)


def _from_gaps(low: int, encoded: bytes) -> list[int]:
    offsets, expected, gap, shift = [], low, 0, 0
    for byte in encoded:
        gap |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            offsets.append(expected + gap)
            expected, gap, shift = expected + gap + 1, 0, 0
    if shift or not offsets:
        raise ValueError("its last number is cut off")
    return offsets
