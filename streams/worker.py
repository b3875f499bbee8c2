"""Stateless concurrent stages, at least once: rewards and rollouts.

Each record is a task. It is finished when its handler has returned, which is after every output was acknowledged; what
is committed is the lowest unfinished offset and, in the metadata, what is finished above it. A crash re-processes just
the unfinished records; outputs carry deterministic identities, so the reader keeps the first of what is written twice.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol

from schemas import Event, Ref, UndecodableError
from streams import names, tracing
from streams.deadletters import dead_letter, event_of
from streams.errors import Poison
from streams.faults import reach
from streams.log import Reader, Writer
from streams.record import Output, Record
from streams.scope import Scope
from streams.tracker import MAX_SPAN, OffsetTracker

logger = logging.getLogger(__name__)

Emit = Callable[[Output], Awaitable[Ref]]

_POLL_S: Final = 0.2
_COMMIT_EVERY_S: Final = 0.5


class Worker(Protocol):
    """What a stage does with one record."""

    async def handle(self, event: Event, record: Record, emit: Emit) -> None:
        """Process one event. Poison: dead letter. Any other exception ends the service; the record is taken again."""


@dataclass(frozen=True)
class WorkerSpec:
    """A stage: its name (its group is `<run>.<stage>`), its input, how many records at once, which event types."""

    stage: str
    input: str
    max_in_flight: int
    types: tuple[type, ...]


async def run_worker(scope: Scope, spec: WorkerSpec, worker: Worker) -> None:
    """Consume until the service is asked to stop; then drain within the budget and commit."""
    log, context = scope.log, scope.context
    group = f"{context.run}.{spec.stage}"
    owned = log.owned(spec.input, context.ordinal, context.replicas)
    committed = await log.committed(group, spec.input, owned)
    trackers = {p: OffsetTracker.restore(*committed.get(p, (0, ""))) for p in owned}
    positions = {(spec.input, p): committed[p][0] if p in committed else None for p in owned}
    async with Writer(log) as writer, Reader(log, positions, group) as reader:
        pump = _Pump(scope, spec, worker, writer, trackers)
        scope.add_status(pump.waiting)
        scope.ready()
        async with asyncio.TaskGroup() as tasks:
            committer = tasks.create_task(pump.commit_regularly(reader), name=f"{spec.stage} commits")
            await pump.intake(reader, tasks)
            await pump.drain(context.drain_s)
            committer.cancel()
        await pump.commit(reader)


class _Pump:
    """Keeps up to `max_in_flight` records in the worker's hands."""

    def __init__(
        self, scope: Scope, spec: WorkerSpec, worker: Worker, writer: Writer, trackers: dict[int, OffsetTracker]
    ) -> None:
        self._scope = scope
        self._spec = spec
        self._worker = worker
        self._writer = writer
        self._trackers = trackers
        self._running: dict[asyncio.Task[None], tuple[Record, float]] = {}
        self._changed = asyncio.Event()
        self._committed: dict[int, tuple[int, str]] = {}

    async def intake(self, reader: Reader, tasks: asyncio.TaskGroup) -> None:
        """Take records until the service stops, never more than fit in hand or in the commit metadata."""
        while not self._scope.stopping.is_set():
            room = self._spec.max_in_flight - len(self._running)
            if room <= 0 or any(tracker.span >= MAX_SPAN for tracker in self._trackers.values()):
                self._changed.clear()
                await _first_of(self._changed, self._scope.stopping)
                continue
            records = await reader.poll(_POLL_S, max_records=room)
            if not records:
                # Drained: what follows are transaction markers, and every record before them was begun.
                for (_, partition), position in (await reader.positions()).items():
                    self._trackers[partition].advance(position)
            for record in records:
                tracker = self._trackers[record.partition]
                if tracker.is_finished(record.offset):
                    continue
                tracker.begin(record.offset)
                task = tasks.create_task(self._take(record), name=f"{self._spec.stage} {record.ref}")
                self._running[task] = (record, time.time())
                task.add_done_callback(self._done)
            self._scope.gauge("in_flight", len(self._running))

    def _done(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        self._changed.set()

    async def _take(self, record: Record) -> None:
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
        self._trackers[record.partition].finish(record.offset)

    async def drain(self, budget_s: float) -> None:
        """Let what is in hand finish within the budget; what does not is cancelled and will be taken again."""
        if self._running:
            _, late = await asyncio.wait(list(self._running), timeout=budget_s)
            for task in late:
                task.cancel()
            if late:
                logger.warning("%s: %d records were not done within %g s", self._spec.stage, len(late), budget_s)
                await asyncio.wait(late, timeout=budget_s)

    async def commit_regularly(self, reader: Reader) -> None:
        """Commit what was finished, every half second."""
        while True:
            await asyncio.sleep(_COMMIT_EVERY_S)
            await self.commit(reader)

    async def commit(self, reader: Reader) -> None:
        """Commit the trackers that moved."""
        states = {p: tracker.commit() for p, tracker in self._trackers.items()}
        moved = {p: state for p, state in states.items() if self._committed.get(p) != state}
        if moved:
            reach("worker.committing")
            await reader.commit(self._spec.input, moved)
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
