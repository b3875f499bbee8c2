"""Stateless concurrent stages, at least once: rewards and rollouts.

Each record is a task. It is finished once its handler has returned, which is after every output was acknowledged. What
is committed is the lowest unfinished offset and, in the metadata, which offsets above it are finished. So a crash
re-processes just the unfinished records. Outputs carry deterministic identities: what is written twice is recognised,
and readers keep the first.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, Protocol

from schemas import Event, Ref, UndecodableError
from streams.cancellation import spawn
from streams.errors import Poison
from streams.faults import reach
from streams.log.clients import Writer
from streams.log.dead_letters import dead_letter, event_of, place
from streams.log.reader import Reader
from streams.log.stall import StallDetector
from streams.record import Output, Record
from streams.runtime.service_context import ServiceContext
from streams.stages.assignment import Assignment, Assignments, FixedAssignments, Membership
from streams.stages.offsets import OffsetTracker
from streams.telemetry import names, tracing

logger = logging.getLogger(__name__)

Emit = Callable[[Output], Awaitable[Ref]]

_POLL_S: Final = 0.2
_COMMIT_EVERY_S: Final = 0.5

_SETTLE_S: Final = 1.0
"""What is in flight when the assignment ends has so long to be finished and committed; other replicas wait for it."""

_REASSIGN_S: Final = 90.0


class Worker(Protocol):
    """What a stage does with one record."""

    async def handle(self, event: Event, record: Record, emit: Emit) -> None:
        """Process one event. Poison: it becomes a dead letter. Any other error ends the service, and it comes again."""


@dataclass(frozen=True)
class WorkerSpec:
    """A stage: its name (its consumer group is `<run>.<stage>`), its input, how many records at once, which events.

    `elastic`: its replicas form a consumer group and divide the partitions among themselves, so that some can come and
    go (`streams.stages.assignment`); otherwise each has those of its ordinal.
    """

    stage: str
    input: str
    max_in_flight: int
    types: tuple[type, ...]
    elastic: bool = False


async def run_worker(service: ServiceContext, spec: WorkerSpec, worker: Worker) -> None:
    """Consume until the service is asked to stop; then drain within the budget, commit, and give the partitions up."""
    async with Writer(service.log) as writer, _assignments_of(service, spec) as assignments:
        pump = _Pump(service, spec, worker, writer, assignments)
        service.add_status(pump.waiting)
        try:
            async with asyncio.TaskGroup() as tasks:
                committer = spawn(pump.commit_regularly(), f"{spec.stage} commits", tasks)
                await pump.take_records(tasks)
                await pump.drain(service.run_context.drain_s)
                committer.cancel()
            await pump.commit()
        finally:
            await pump.close()


def _assignments_of(service: ServiceContext, spec: WorkerSpec) -> FixedAssignments | Membership:
    context = service.run_context
    group = f"{context.run}.{spec.stage}"
    if spec.elastic:
        return Membership(service.log, group, spec.input, context.ordinal)
    return FixedAssignments(service.log, group, spec.input, context.ordinal, context.replicas)


class _Pump:
    """Keeps up to `max_in_flight` records with the worker."""

    def __init__(
        self, service: ServiceContext, spec: WorkerSpec, worker: Worker, writer: Writer, assignments: Assignments
    ) -> None:
        self._service = service
        self._spec = spec
        self._worker = worker
        self._writer = writer
        self._assignments = assignments
        self._reader: Reader | None = None
        self._stall = StallDetector()
        self._assigned = False
        self._trackers: dict[int, OffsetTracker] = {}
        self._running: dict[asyncio.Task[None], tuple[Record, float]] = {}
        self._changed = asyncio.Event()
        self._committed: dict[int, tuple[int, str]] = {}

    async def take_records(self, tasks: asyncio.TaskGroup) -> None:
        """Take records until the service stops, never more than `max_in_flight` or the metadata have room for."""
        stopping, revoked = self._service.stopping, self._assignments.revoked
        with self._service.loop(f"{self._spec.stage} reads {self._spec.input}") as loop:
            while not stopping.is_set():
                loop.turn()
                if revoked.is_set() or not self._assigned:
                    with loop.resting():  # a named wait with a deadline of its own
                        await _unless(stopping, self._reassign())
                elif self._reader is not None and (room := self._room()) > 0:
                    await self._fill(self._reader, room, tasks)
                else:
                    self._changed.clear()
                    with loop.resting():
                        await _first_of(self._changed, stopping, revoked)

    def _room(self) -> int:
        """How many more records may be begun now."""
        if any(tracker.full for tracker in self._trackers.values()):
            return 0
        return self._spec.max_in_flight - len(self._running)

    async def _fill(self, reader: Reader, room: int, tasks: asyncio.TaskGroup) -> None:
        """Begin up to `room` records that have come, or come soon."""
        records = await reader.poll(_POLL_S, max_records=room)
        if not records:
            await self._note_drained(reader)
        if len(records) < room:
            # All that was fetched is taken: a partition that added nothing to this had nothing, or is stuck.
            await self._stall.check(reader)
        for record in records:
            self._begin(record, tasks)
        self._service.gauge("in_flight", len(self._running))

    async def _note_drained(self, reader: Reader) -> None:
        """Pass the transaction markers that follow: every record before them was begun."""
        for (_, partition), position in (await reader.positions()).items():
            self._trackers[partition].advance(position)

    def _begin(self, record: Record, tasks: asyncio.TaskGroup) -> None:
        tracker = self._trackers[record.partition]
        if tracker.is_finished(record.offset):
            return
        tracker.begin(record.offset)
        task = spawn(self._process(record, tracker), place(record.ref), tasks)
        self._running[task] = (record, time.time())
        task.add_done_callback(self._done)

    async def _reassign(self) -> None:
        """From one assignment to the next: nothing is taken, what is finished is committed, other replicas take over.

        Records of lost partitions that are still in flight are finished and written but not committed: their new owner
        takes them again, and readers recognise what is written twice.
        """
        self._assigned = False
        if self._running:
            await asyncio.wait(list(self._running), timeout=_SETTLE_S)
        await self.commit()
        async with self._service.wait(f"for its partitions of {self._spec.input}", _REASSIGN_S):
            assignment = await self._assignments.take()
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
            await self._read_from(positions)
        self._assigned = True
        self._service.gauge("partitions", len(positions))
        logger.info("%s: has partitions %s of %s", self._spec.stage, sorted(self._trackers), self._spec.input)
        self._service.ready()

    def _forget(self, assignment: Assignment) -> None:
        kept = assignment.partitions if assignment.continued else frozenset()
        self._trackers = {p: tracker for p, tracker in self._trackers.items() if p in kept}
        self._committed = {p: state for p, state in self._committed.items() if p in kept}

    async def _read_from(self, positions: dict[tuple[str, int], int | None]) -> None:
        """Read on from `positions`, with a new reader: it has nothing prefetched from an earlier assignment."""
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

    async def _process(self, record: Record, tracker: OffsetTracker) -> None:
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
                digest = self._service.run_context.config_digest
                await self._writer.write(dead_letter(record, self._spec.stage, str(error), time.time(), digest))
        reach("worker.handled")
        tracker.finish(record.offset)

    async def drain(self, budget_s: float) -> None:
        """Let what is in flight finish within the budget; what does not is cancelled and will be taken again."""
        if self._running:
            _, late = await asyncio.wait(list(self._running), timeout=budget_s)
            for task in late:
                task.cancel()
            if late:
                logger.warning("%s: %d records were not finished within %g s", self._spec.stage, len(late), budget_s)
                await asyncio.wait(late, timeout=budget_s)

    async def commit_regularly(self) -> None:
        """Commit what was finished, every half second."""
        while True:
            await asyncio.sleep(_COMMIT_EVERY_S)
            await self.commit()

    async def commit(self) -> None:
        """Commit the trackers that have changed, unless the assignment has just ended: then the new owner repeats."""
        states = {p: tracker.commit() for p, tracker in self._trackers.items()}
        changed = {p: state for p, state in states.items() if self._committed.get(p) != state}
        if changed:
            reach("worker.committing")
            if await self._assignments.commit(changed):
                self._committed.update(changed)

    def waiting(self) -> list[str]:
        """How many records are in flight, and the oldest of them."""
        if not self._running:
            return []
        record, since = min(self._running.values(), key=lambda item: item[1])
        age = time.time() - since
        where = f"{record.topic}/{record.partition}@{record.offset}"
        return [f"{len(self._running)} records in flight, the oldest {where} since {age:.0f} s"]


async def _first_of(*events: asyncio.Event) -> None:
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


async def _unless(stopping: asyncio.Event, coroutine: Coroutine[Any, Any, None]) -> None:
    """Await `coroutine`, or cancel it when the service stops."""
    work = spawn(coroutine, "a new assignment")
    stop = asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait([work, stop], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (work, stop):
            task.cancel()
        await asyncio.wait([work, stop])
    if not work.cancelled():
        work.result()
