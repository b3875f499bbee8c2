"""Runs the folds of a stage: each has its input partitions, its transactional producer, and its turns.

A turn takes what was read, folds it, and writes outputs and consumed offsets in one transaction
(`streams.stages.processor`).
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from schemas import UndecodableError
from streams.errors import Poison
from streams.log.dead_letters import dead_letter, event_of, place
from streams.log.tail import Tail, passed_over, read_tail
from streams.log.transaction import TransactionalWriter
from streams.record import Output, Record
from streams.runtime.loop_watchdog import Deadman
from streams.runtime.service_context import ServiceContext
from streams.stages.offsets import OffsetTracker
from streams.stages.prefetch import MAX_RECORDS, POLL_S, Key, Position, Prefetcher
from streams.stages.processor import Processor, ProcessorSpec, ProcessResult
from streams.telemetry import names, tracing

logger = logging.getLogger(__name__)

_LINGER_S: Final = 0.04
"""Between the beginnings of two transactions, where input waits: each costs the broker six requests and its log some
markers, whatever it holds."""

_SILENT_S: Final = 60.0
"""A fold takes milliseconds for a record. One that has not returned for so long never will."""


async def run_processor(service: ServiceContext, spec: ProcessorSpec, make: Callable[[int | None], Processor]) -> None:
    """Run the stage's shards that this replica owns until the service is asked to stop."""
    context = service.run_context
    owned = service.log.owned(spec.input, context.ordinal, context.replicas)
    shards = [ProcessorTask(service, spec, [p], p, make(p)) for p in owned] if spec.shard == "partition" else []
    if spec.shard == "all":
        if context.replicas != 1:
            raise ValueError(f"stage {spec.stage} runs as one instance and not as {context.replicas}")
        shards = [ProcessorTask(service, spec, list(owned), None, make(None))]
    async with asyncio.TaskGroup() as tasks:
        started = [tasks.create_task(shard.start(), name=f"{spec.stage} starts") for shard in shards]
        await asyncio.wait(started)
        service.ready()
        deadman = Deadman(lambda: f"{spec.stage} folds {', '.join(shard.in_hand for shard in shards)}", _SILENT_S)
        beating = tasks.create_task(deadman.beat(), name=f"{spec.stage} beats")
        await asyncio.wait([tasks.create_task(s.run(), name=f"{spec.stage} shard {s.key}") for s in shards])
        beating.cancel()


class ProcessorTask:
    """One fold, its input partitions and its transactional producer."""

    def __init__(
        self, service: ServiceContext, spec: ProcessorSpec, partitions: list[int], key: int | None, fold: Processor
    ) -> None:
        self.key = "all" if key is None else key
        self._service = service
        self._spec = spec
        self._partitions = partitions
        self._fold = fold
        self._group = f"{service.run_context.run}.{spec.stage}"
        self._writer = TransactionalWriter(service.log, f"{self._group}.{spec.input}.{self.key}")
        self._trackers: dict[Key, OffsetTracker] = {}
        self._positions: dict[Key, int | None] = {}
        self._intake = Prefetcher(service, spec, self._group, self._positions, self._trackers)
        self.in_hand = "nothing"
        self._dirty: set[Key] = set()
        self._committed: dict[Key, tuple[int, str]] = {}
        self._written_s = -_LINGER_S

    async def start(self) -> None:
        """Fence the predecessor, read what it committed, recall its outputs."""
        await self._writer.open()
        log, spec = self._service.log, self._spec
        own = None if self.key == "all" else int(self.key)
        inputs = (spec.input, *spec.extra_inputs)
        found = await asyncio.gather(*[log.committed(self._group, topic, self._partitions) for topic in inputs])
        for topic, committed in zip(inputs, found, strict=True):
            for partition in self._partitions:
                offset, metadata = committed.get(partition, (0, ""))
                self._trackers[(topic, partition)] = OffsetTracker.restore(offset, metadata)
                self._positions[(topic, partition)] = offset if partition in committed else None
        if spec.recall is not None:
            for event, record in await read_tail(log, spec.recall, own, time.time()):
                self._fold.on_recalled(event, record)
            await self._pass_over(spec.recall)
        self._service.add_status(self._waiting)

    async def _pass_over(self, recall: Tail) -> None:
        """Where the broker forgot what was committed, begin `also` with what is recalled: what is older may have ended.
        A record of the input itself must have its end, whatever the fold can still say of it.
        """
        for topic in self._spec.extra_inputs:
            missing = [p for p in self._partitions if self._positions[(topic, p)] is None]
            for partition, offset in (
                await passed_over(self._service.log, recall, topic, missing, time.time())
            ).items():
                key = (topic, partition)
                self._positions[key], self._trackers[key] = offset, OffsetTracker(offset)
                self._committed[key] = (offset, "")
        if self._committed:
            await self._writer.write([], self._group, self._committed)

    def _waiting(self) -> list[str]:
        """What the fold waits for, and the inputs that are not read on because the commit metadata is nearly full."""
        held = [
            f"reads no more of {topic}/{partition} until its oldest unfinished record ends"
            for (topic, partition), tracker in self._trackers.items()
            if tracker.full
        ]
        return [*self._fold.waiting(time.time()), *held]

    async def run(self) -> None:
        """Processor records until the service stops; every turn is one transaction."""
        try:
            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(self._intake.pump(), name=f"{self._spec.stage} reads")
                while not self._service.stopping.is_set():
                    await self._turn()
                reading.cancel()
        finally:
            await self._writer.close()

    async def _turn(self) -> None:
        """Take what is there (or wait for it, or for a deadline), fold it, write it."""
        records = await self._intake.take(self._patience_s())
        if records and (early_s := self._written_s + _LINGER_S - time.monotonic()) > 0:
            await asyncio.sleep(early_s)
        while len(records) < MAX_RECORDS and (more := self._intake.more()):
            records = [*records, *more]
        now_s = time.time()
        outputs: list[Output] = []
        for record in records:
            if isinstance(record, Position):
                self._trackers[(record.topic, record.partition)].advance(record.offset)
                self._dirty.add((record.topic, record.partition))
            else:
                outputs.extend(self._take(record, now_s))
        due = self._fold.next_time_s()
        if due is not None and due <= now_s:
            self.in_hand = "its deadlines"
            outputs.extend(self._apply(self._fold.on_time(now_s)))
        await self._write(outputs)

    def _patience_s(self) -> float:
        due = self._fold.next_time_s()
        return POLL_S if due is None else min(POLL_S, max(0.0, due - time.time()))

    def _take(self, record: Record, now_s: float) -> list[Output]:
        self.in_hand = place(record.ref)
        tracker = self._trackers.get((record.topic, record.partition))
        if tracker is not None:
            self._intake.took(record)
            if tracker.is_finished(record.offset):
                return []
            tracker.begin(record.offset)
            self._dirty.add((record.topic, record.partition))
        try:
            event = event_of(record)
            turn = (self._fold.on_side_input if tracker is None else self._fold.on_event)(event, record, now_s)
        except (UndecodableError, Poison) as error:
            if tracker is None:
                return []  # a side topic's record belongs to another stage, or to the dispatcher: it has its letter
            if record.topic != self._spec.input:
                return self._apply(ProcessResult(finished=(record.ref,)))
            logger.warning("%s: dead letter %s: %s", self._spec.stage, record.ref, error)
            letter = dead_letter(record, self._spec.stage, str(error), now_s)
            return self._apply(ProcessResult((letter,), (record.ref,)))
        return self._apply(turn, record)

    def _apply(self, turn: ProcessResult, record: Record | None = None) -> list[Output]:
        for ref in turn.finished:
            self._trackers[(ref.topic, ref.partition)].finish(ref.offset)
            self._dirty.add((ref.topic, ref.partition))
        if record is None:
            return list(turn.outputs)
        return [
            output if output.cause is not None else Output(output.topic, output.event, output.key, record, output.links)
            for output in turn.outputs
        ]

    async def _write(self, outputs: list[Output]) -> None:
        """One transaction with the outputs and the offsets that moved; none where nothing was finished."""
        offsets = {key: self._trackers[key].commit() for key in self._dirty}
        offsets = {key: state for key, state in offsets.items() if self._committed.get(key) != state}
        self._dirty.clear()
        if not outputs and not offsets:
            return
        self._written_s = time.monotonic()
        links = tuple(output.cause for output in outputs if output.cause is not None)
        with tracing.span(
            names.process(self._spec.input),
            links=links,
            kind=tracing.SpanKind.CONSUMER,
            attributes={names.STAGE: self._spec.stage, names.RECORDS: len(outputs)},
        ):
            await self._writer.write(outputs, self._group, offsets)
        self._committed.update(offsets)
