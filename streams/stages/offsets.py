"""Which input offsets are done: low watermark, finished set above it, and their encoding into commit metadata.

A stage finishes records out of order. What may be committed is the lowest unfinished offset; what is finished above it
travels in the commit's metadata, so that a restart re-processes exactly the unfinished records.
"""

from typing import Final

from streams.stages.offset_metadata import decode, encode, gaps, mixed_bytes

METADATA_LIMIT_BYTES: Final = 4096
"""The broker's default `offset.metadata.max.bytes`."""

MAX_SPAN: Final = 20_000
"""Offsets between the lowest unfinished and the newest begun that fit the metadata whatever the pattern.

As a bitmap in base64 they are 3,334 characters.
"""

MAX_LISTED_SPAN: Final = 2_000_000
"""Span at which a stage takes no more records however few are unfinished: a restart reads all of it again."""

MAX_LISTED_BYTES: Final = 1_800
"""Size of the list of unfinished offsets below which a stage takes more records without a closer look."""

MAX_MIXED_BYTES: Final = 2_500
"""Size of the best mixture of list and bitmap (`streams.stages.offset_metadata`) at which it takes no more.

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
        """`offset` needs no more work. ValueError: it is not open."""
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

        What is finished meanwhile makes it longer by two bytes at most: a bitmap may begin where it did, and one that
        begins at the next unfinished offset has a longer gap before it.
        """
        return self.full_with(0)

    def full_with(self, ahead: int) -> bool:
        """`full`, for a stage that has read `ahead` more records, which it will begin."""
        if self.span + ahead < MAX_SPAN:
            return False
        if self.span >= MAX_LISTED_SPAN:
            return True
        low, unfinished = self._watermark(), self._unfinished()
        listed = ahead + len(gaps(low, unfinished))
        if listed < MAX_LISTED_BYTES:
            return False
        top = max(self._seen - 1, self._top)
        # Of what is ahead, every other offset may be a transaction's marker.
        expected = [*unfinished, top + 1] if ahead else unfinished
        return min(listed, mixed_bytes(low, top + 2 * ahead, expected)) >= MAX_MIXED_BYTES

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
        return low, encode(low, top, unfinished)

    @classmethod
    def restore(cls, offset: int, metadata: str) -> "OffsetTracker":
        """The tracker that committed `(offset, metadata)`. ValueError: metadata that no tracker wrote."""
        tracker = cls(offset)
        tracker._top, holes = decode(offset, metadata)
        tracker._holes = dict.fromkeys(holes)
        return tracker
