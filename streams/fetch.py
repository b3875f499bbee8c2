"""Random access by reference: the records behind a batch plan, read where they are."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from schemas import Ref
from streams.errors import DeadlineError, MissingRecordError
from streams.log import Log, Reader
from streams.record import Record

_POLL_S: Final = 0.5
_SKIP_LIMIT: Final = 64
"""Reading over up to this many records between two wanted ones is cheaper than a new fetch."""


class RecordFetcher:
    """Fetches records of one topic by reference. Use as an async context; one fetch at a time."""

    def __init__(self, log: Log, topic: str) -> None:
        self._log = log
        self._topic = topic
        self._reader = Reader(log, {(topic, p): 0 for p in log.partitions(topic)})
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> "RecordFetcher":
        await self._reader.__aenter__()
        self._reader.pause(self._topic, list(self._log.partitions(self._topic)))
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._reader.__aexit__(*exc)

    async def fetch(self, refs: Sequence[Ref], timeout_s: float) -> list[Record]:
        """The records of `refs`, in their order. MissingRecordError names one that is not there; DeadlineError."""
        wanted: defaultdict[int, set[int]] = defaultdict(set)
        for ref in refs:
            if ref.topic != self._topic or ref.partition not in self._log.partitions(self._topic):
                raise MissingRecordError(ref)
            wanted[ref.partition].add(ref.offset)
        found: dict[Ref, Record] = {}
        deadline = time.monotonic() + timeout_s
        async with self._lock:
            for partition, offsets in wanted.items():
                for run in _runs(sorted(offsets)):
                    await self._read(partition, run, found, deadline, timeout_s)
        return [found[Ref(*ref)] for ref in refs]

    async def _read(
        self, partition: int, offsets: list[int], found: dict[Ref, Record], deadline: float, timeout_s: float
    ) -> None:
        missing = set(offsets)
        self._reader.seek({(self._topic, partition): offsets[0]})
        self._reader.resume(self._topic, [partition])
        try:
            while missing:
                if time.monotonic() > deadline:
                    raise DeadlineError(f"for records of {self._topic}/{partition}", timeout_s)
                for record in await self._reader.poll(_POLL_S):
                    if record.partition != partition:
                        continue
                    if record.offset in missing:
                        missing.discard(record.offset)
                        found[record.ref] = record
                    elif missing and record.offset > min(missing):
                        raise MissingRecordError(Ref(self._topic, partition, min(missing)))
        finally:
            self._reader.pause(self._topic, [partition])


def _runs(offsets: list[int]) -> list[list[int]]:
    """Split sorted offsets where a gap is too wide to read over."""
    runs = [[offsets[0]]]
    for offset in offsets[1:]:
        if offset - runs[-1][-1] > _SKIP_LIMIT:
            runs.append([])
        runs[-1].append(offset)
    return runs
