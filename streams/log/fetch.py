"""Random access by reference: the records behind a batch plan, read where they are."""

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Final

from schemas import Ref
from streams.errors import DeadlineError, MissingRecordError
from streams.log.clients import Log
from streams.log.reader import Reader
from streams.record import Record

_POLL_S: Final = 0.5
_FETCH_BYTES: Final = 256 * 1024
"""What one request brings of a partition: more would be read in vain before a seek. A larger record comes whole."""

_SKIP_LIMIT: Final = 64
"""Reading over up to this many records between two wanted ones is cheaper than a new fetch."""


class RecordFetcher:
    """Fetches records of one topic by reference. Use as an async context; one fetch at a time."""

    def __init__(self, log: Log, topic: str) -> None:
        self._log = log
        self._topic = topic
        self._reader = Reader(log, {(topic, p): 0 for p in log.partitions(topic)}, fetch_bytes=_FETCH_BYTES)
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
        async with self._lock:
            await self._read(
                {partition: deque(sorted(offsets)) for partition, offsets in wanted.items()}, found, timeout_s
            )
        return [found[Ref(*ref)] for ref in refs]

    async def _read(self, wanted: dict[int, deque[int]], found: dict[Ref, Record], timeout_s: float) -> None:
        """All partitions at once, each in the order of its offsets; over a wide gap it seeks."""
        deadline = time.monotonic() + timeout_s
        partitions = list(wanted)
        self._reader.seek({(self._topic, partition): offsets[0] for partition, offsets in wanted.items()})
        self._reader.resume(self._topic, partitions)
        try:
            while wanted:
                if time.monotonic() > deadline:
                    raise DeadlineError(f"for records of {self._topic}/{next(iter(wanted))}", timeout_s)
                for record in await self._reader.poll(_POLL_S):
                    if (offsets := wanted.get(record.partition)) is not None:
                        self._take(record, offsets, found)
                        if not offsets:
                            del wanted[record.partition]
                            self._reader.pause(self._topic, [record.partition])
        finally:
            self._reader.pause(self._topic, partitions)

    def _take(self, record: Record, offsets: deque[int], found: dict[Ref, Record]) -> None:
        if record.offset < offsets[0]:
            return
        if record.offset > offsets[0]:
            raise MissingRecordError(Ref(self._topic, record.partition, offsets[0]))
        found[record.ref] = record
        offsets.popleft()
        if offsets and offsets[0] - record.offset > _SKIP_LIMIT:
            self._reader.seek({(self._topic, record.partition): offsets[0]})
