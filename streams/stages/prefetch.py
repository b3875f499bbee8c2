"""What a processor task reads: its inputs and side inputs, by a coroutine each, into one bounded queue."""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from streams.cancellation import spawn
from streams.log.reader import Reader
from streams.log.stall import StallDetector
from streams.record import Record
from streams.runtime.progress import Progress
from streams.runtime.service_context import ServiceContext
from streams.stages.offsets import OffsetTracker
from streams.stages.processor import ProcessorSpec

POLL_S: Final = 0.1
MAX_RECORDS: Final = 500
_QUEUE: Final = 4

Key = tuple[str, int]
"""Topic and partition."""


class Position(NamedTuple):
    """Nothing more comes below `offset` of an input partition."""

    topic: str
    partition: int
    offset: int


class Prefetcher:
    """Reads on from `positions` while the tracker of each partition has room, as long as `run` runs.

    The trackers are the task's; records that it has not begun yet (`note_begun`) count as begun, for they will be.
    """

    def __init__(
        self,
        service: ServiceContext,
        spec: ProcessorSpec,
        group: str,
        positions: Mapping[Key, int | None],
        trackers: Mapping[Key, OffsetTracker],
    ) -> None:
        self._service = service
        self._spec = spec
        self._group = group
        self._positions = positions
        self._trackers = trackers
        self._ahead: Counter[Key] = Counter()
        self._queue: asyncio.Queue[Sequence[Record | Position]] = asyncio.Queue(_QUEUE)

    def note_begun(self, record: Record) -> None:
        """`record` has left the queue and is begun."""
        self._ahead[(record.topic, record.partition)] -= 1

    async def take(self, patience_s: float) -> Sequence[Record | Position]:
        """What one poll gave; empty where nothing came within `patience_s`."""
        try:
            async with asyncio.timeout(patience_s):
                return await self._queue.get()
        except TimeoutError:
            return ()

    def take_now(self) -> Sequence[Record | Position]:
        """What another poll has given meanwhile; empty where none has."""
        return () if self._queue.empty() else self._queue.get_nowait()

    async def run(self) -> None:
        """Read until cancelled: `spec.extra_inputs` first, up to where they end now. StreamsError: one is stuck."""
        spec, log = self._spec, self._service.log
        side: dict[Key, int | None] = {(t, p): None for t in spec.side_inputs for p in log.partitions(t)}
        first = {topic: asyncio.Event() for topic in spec.extra_inputs}
        async with asyncio.TaskGroup() as tasks:
            for topic, caught_up in first.items():
                spawn(self._read_input(topic, (), caught_up), f"{spec.stage} reads {topic}", tasks)
            reading = self._read_input(spec.input, list(first.values()), asyncio.Event())
            spawn(reading, f"{spec.stage} reads {spec.input}", tasks)
            if side:
                spawn(self._read_side_inputs(side), f"{spec.stage} reads its side inputs", tasks)

    async def _read_input(self, topic: str, after: Sequence[asyncio.Event], caught_up: asyncio.Event) -> None:
        """Read `topic` once all of `after` are set; set `caught_up` at where the topic ended at the start."""
        keys = [key for key in self._trackers if key[0] == topic]
        noted: dict[Key, int] = {}
        stall = StallDetector()
        for event in after:
            await event.wait()
        with self._service.loop(f"{self._spec.stage} reads {topic}") as loop:
            async with Reader(self._service.log, {key: self._positions[key] for key in keys}, self._group) as reader:
                ends = await reader.ends()
                while True:
                    loop.turn()
                    full = any(self._trackers[key].full_with(self._ahead[key]) for key in keys)
                    if not caught_up.is_set() and (full or all([await reader.position(*k) >= ends[k] for k in keys])):
                        caught_up.set()
                    if full:
                        # The commit metadata is nearly full: deadlines will finish records and make room. This does not
                        # wait for the service's stop as well: once that is set, the loop would never yield again.
                        await asyncio.sleep(POLL_S)
                        stall.excuse(POLL_S)
                        continue
                    records = await reader.poll(POLL_S, max_records=MAX_RECORDS)
                    if records:
                        self._ahead.update((record.topic, record.partition) for record in records)
                        await self._put(records, stall, loop)
                    elif (positions := await reader.positions()) != noted:
                        # Drained: behind the records in the queue there are only transaction markers up to here.
                        await self._put(
                            [Position(t, p, position) for (t, p), position in positions.items()], stall, loop
                        )
                        noted = positions
                    await stall.check(reader)

    async def _read_side_inputs(self, positions: Mapping[Key, int | None]) -> None:
        stall = StallDetector()
        with self._service.loop(f"{self._spec.stage} reads its side inputs") as loop:
            async with Reader(self._service.log, positions) as reader:
                while True:
                    loop.turn()
                    records = await reader.poll(POLL_S, max_records=MAX_RECORDS)
                    if records:
                        await self._put(records, stall, loop)
                    await stall.check(reader)

    async def _put(self, records: Sequence[Record | Position], stall: StallDetector, loop: Progress) -> None:
        """Into the queue. While it has no room nothing is read, which is not the reader's fault."""
        began_s = time.monotonic()
        with loop.resting():
            await self._queue.put(records)
        stall.excuse(time.monotonic() - began_s)
