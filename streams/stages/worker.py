"""Stateless concurrent stages, at least once: rewards and rollouts.

Each record is a task. It is finished when its handler has returned, which is after every output was acknowledged; what
is committed is the lowest unfinished offset and, in the metadata, what is finished above it. A crash re-processes just
the unfinished records; outputs carry deterministic identities, so the reader keeps the first of what is written twice.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, Protocol

from schemas import Event, Ref, UndecodableError
from streams.errors import Poison
from streams.faults import reach
from streams.log.clients import Writer
from streams.log.dead_letters import dead_letter, event_of, place
from streams.log.reader import Reader
from streams.log.stall import Watchdog
from streams.record import Output, Record
from streams.runtime.service_context import ServiceContext
from streams.stages.assignment import Assignment, FixedShare, Membership, Share
from streams.stages.offsets import OffsetTracker
from streams.telemetry import names, tracing

logger = logging.getLogger(__name__)

Emit = Callable[[Output], Awaitable[Ref]]

_POLL_S: Final = 0.2
_COMMIT_EVERY_S: Final = 0.5

_SETTLE_S: Final = 1.0
"""What is in hand when the assignment ends has so long to be finished and committed; the others wait for it."""

_MOVE_S: Final = 90.0


class Worker(Protocol):
    """What a stage does with one record."""

    async def handle(self, event: Event, record: Record, emit: Emit) -> None:
        """Process one event. Poison: dead letter. Any other exception ends the service; the record is taken again."""


@dataclass(frozen=True)
class WorkerSpec:
    """A stage: its name (its group is `<run>.<stage>`), its input, how many records at once, which event types.

    `elastic`: its replicas deal the partitions among themselves, so that some can come and go
    (`streams.stages.assignment`); else each has those of its number.
    """

    stage: str
    input: str
    max_in_flight: int
    types: tuple[type, ...]
    elastic: bool = False


async def run_worker(service: ServiceContext, spec: WorkerSpec, worker: Worker) -> None:
    """Consume until the service is asked to stop; then drain within the budget, commit, and give the partitions up."""
    async with Writer(service.log) as writer, _share_of(service, spec) as share:
        pump = _Pump(service, spec, worker, writer, share)
        service.add_status(pump.waiting)
        try:
            async with asyncio.TaskGroup() as tasks:
                committer = tasks.create_task(pump.commit_regularly(), name=f"{spec.stage} commits")
                await pump.intake(tasks)
                await pump.drain(service.run_context.drain_s)
                committer.cancel()
            await pump.commit()
        finally:
            await pump.close()


def _share_of(service: ServiceContext, spec: WorkerSpec) -> FixedShare | Membership:
    context = service.run_context
    group = f"{context.run}.{spec.stage}"
    if spec.elastic:
        return Membership(service.log, group, spec.input, context.ordinal)
    return FixedShare(service.log, group, spec.input, context.ordinal, context.replicas)


class _Pump:
    """Keeps up to `max_in_flight` records in the worker's hands."""

    def __init__(self, service: ServiceContext, spec: WorkerSpec, worker: Worker, writer: Writer, share: Share) -> None:
        self._service = service
        self._spec = spec
        self._worker = worker
        self._writer = writer
        self._share = share
        self._reader: Reader | None = None
        self._watchdog = Watchdog()
        self._placed = False
        self._trackers: dict[int, OffsetTracker] = {}
        self._running: dict[asyncio.Task[None], tuple[Record, float]] = {}
        self._changed = asyncio.Event()
        self._committed: dict[int, tuple[int, str]] = {}

    async def intake(self, tasks: asyncio.TaskGroup) -> None:
        """Take records until the service stops, never more than fit in hand or in the commit metadata."""
        stopping, moved = self._service.stopping, self._share.moved
        while not stopping.is_set():
            if moved.is_set() or not self._placed:
                await _unless(stopping, self._move())
                continue
            room = self._spec.max_in_flight - len(self._running)
            full = room <= 0 or any(tracker.full for tracker in self._trackers.values())
            if full or self._reader is None:
                self._changed.clear()
                await _first_of(self._changed, stopping, moved)
                continue
            records = await self._reader.poll(_POLL_S, max_records=room)
            if not records:
                # Drained: what follows are transaction markers, and every record before them was begun.
                for (_, partition), position in (await self._reader.positions()).items():
                    self._trackers[partition].advance(position)
            if len(records) < room:
                # All that was fetched is taken: a partition that gave nothing to this had nothing, or is stuck.
                await self._watchdog.look(self._reader)
            for record in records:
                self._begin(record, tasks)
            self._service.gauge("in_flight", len(self._running))

    def _begin(self, record: Record, tasks: asyncio.TaskGroup) -> None:
        tracker = self._trackers[record.partition]
        if tracker.is_finished(record.offset):
            return
        tracker.begin(record.offset)
        task = tasks.create_task(self._take(record, tracker), name=place(record.ref))
        self._running[task] = (record, time.time())
        task.add_done_callback(self._done)

    async def _move(self) -> None:
        """From one assignment to the next: the intake stands still, what is finished is committed, others take over.

        Records of lost partitions that are still in hand are finished and written but not committed: their new owner
        takes them again, and the readers recognise what is written twice.
        """
        self._placed = False
        if self._running:
            await asyncio.wait(list(self._running), timeout=_SETTLE_S)
        await self.commit()
        async with self._service.wait(f"for its partitions of {self._spec.input}", _MOVE_S):
            assignment = await self._share.take()
            self._forget(assignment)
            positions: dict[tuple[str, int], int | None] = {
                (self._spec.input, partition): tracker.position for partition, tracker in self._trackers.items()
            }
            log, context = self._service.log, self._service.run_context
            new = sorted(assignment.partitions - self._trackers.keys())
            committed = await log.committed(f"{context.run}.{self._spec.stage}", self._spec.input, new) if new else {}
            for partition in new:
                self._trackers[partition] = OffsetTracker.restore(*committed.get(partition, (0, "")))
                positions[self._spec.input, partition] = committed[partition][0] if partition in committed else None
            await self._read(positions)
        self._placed = True
        self._service.gauge("partitions", len(positions))
        logger.info("%s: has partitions %s of %s", self._spec.stage, sorted(self._trackers), self._spec.input)
        self._service.ready()

    def _forget(self, assignment: Assignment) -> None:
        kept = assignment.partitions if assignment.continued else frozenset()
        self._trackers = {p: tracker for p, tracker in self._trackers.items() if p in kept}
        self._committed = {p: state for p, state in self._committed.items() if p in kept}

    async def _read(self, positions: dict[tuple[str, int], int | None]) -> None:
        """Read on from `positions`, by a new reader: it has nothing prefetched from an assignment before."""
        await self.close()
        if positions:
            self._reader = await Reader(self._service.log, positions).__aenter__()

    async def close(self) -> None:
        """Stop reading."""
        reader, self._reader = self._reader, None
        if reader is not None:
            await reader.__aexit__()

    def _done(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        self._changed.set()

    async def _take(self, record: Record, tracker: OffsetTracker) -> None:
        with tracing.span(
            names.process(record.topic),
            cause=record,
            kind=tracing.SpanKind.CONSUMER,
            attributes={names.PARTITION: record.partition, names.OFFSET: record.offset, names.STAGE: self._spec.stage},
        ):
            try:
                event = event_of(record)
                if not isinstance(event, self._spec.types):
                    raise Poison(f"a {type(event).__name__} does not belong on {record.topic}")
                await self._worker.handle(event, record, self._writer.write)
            except (UndecodableError, Poison) as error:
                logger.warning("%s: dead letter %s: %s", self._spec.stage, record.ref, error)
                await self._writer.write(dead_letter(record, self._spec.stage, str(error), time.time()))
        reach("worker.handled")
        tracker.finish(record.offset)

    async def drain(self, budget_s: float) -> None:
        """Let what is in hand finish within the budget; what does not is cancelled and will be taken again."""
        if self._running:
            _, late = await asyncio.wait(list(self._running), timeout=budget_s)
            for task in late:
                task.cancel()
            if late:
                logger.warning("%s: %d records were not done within %g s", self._spec.stage, len(late), budget_s)
                await asyncio.wait(late, timeout=budget_s)

    async def commit_regularly(self) -> None:
        """Commit what was finished, every half second."""
        while True:
            await asyncio.sleep(_COMMIT_EVERY_S)
            await self.commit()

    async def commit(self) -> None:
        """Commit the trackers that moved; where the assignment has just ended, the next one begins from the last."""
        states = {p: tracker.commit() for p, tracker in self._trackers.items()}
        moved = {p: state for p, state in states.items() if self._committed.get(p) != state}
        if moved:
            reach("worker.committing")
            if await self._share.commit(moved):
                self._committed.update(moved)

    def waiting(self) -> list[str]:
        """The oldest record in hand."""
        if not self._running:
            return []
        record, since = min(self._running.values(), key=lambda item: item[1])
        age = time.time() - since
        where = f"{record.topic}/{record.partition}@{record.offset}"
        return [f"{len(self._running)} records in hand, the oldest {where} since {age:.0f} s"]


async def _first_of(*events: asyncio.Event) -> None:
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


async def _unless(stopping: asyncio.Event, coroutine: Coroutine[Any, Any, None]) -> None:
    """Await `coroutine`, or break it off when the service stops."""
    work = asyncio.ensure_future(coroutine)
    stop = asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait([work, stop], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (work, stop):
            task.cancel()
        await asyncio.wait([work, stop])
    if not work.cancelled():
        work.result()
