"""Runs the processors of a stage: each has its input partitions and its transactional producer.

A task takes what was read, has the processor process it, and writes the outputs and the consumed offsets in one
transaction (`streams.stages.processor`); then it takes the next records.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from schemas import UndecodableError
from streams.cancellation import spawn
from streams.errors import Poison
from streams.log.dead_letters import dead_letter, event_of, place
from streams.log.tail import Tail, offsets_at_tail, read_tail
from streams.log.transaction import TransactionalWriter
from streams.record import Output, Record
from streams.runtime.loop_watchdog import LoopWatchdog
from streams.runtime.service_context import ServiceContext
from streams.stages.offsets import OffsetTracker
from streams.stages.prefetch import MAX_RECORDS, POLL_S, Key, Position, Prefetcher
from streams.stages.processor import Processor, ProcessorSpec, ProcessResult
from streams.telemetry import names, tracing

logger = logging.getLogger(__name__)

_LINGER_S: Final = 0.04
"""Between the beginnings of two transactions, where input waits: each costs the broker six requests and its log some
markers, however little it holds."""

_SILENT_S: Final = 60.0
"""A processor takes milliseconds for a record. One that has not returned for so long never will."""


async def run_processor(service: ServiceContext, spec: ProcessorSpec, make: Callable[[int | None], Processor]) -> None:
    """Run the tasks of a stage that this replica owns until the service is asked to stop.

    `make` gets the task's partition, or None where one task has all of them.
    """
    context = service.run_context
    owned = service.log.owned(spec.input, context.ordinal, context.replicas)
    if spec.tasks == "one":
        if context.replicas != 1:
            raise ValueError(f"stage {spec.stage} runs as one instance and not as {context.replicas}")
        tasks = [ProcessorTask(service, spec, list(owned), None, make(None))]
    else:
        tasks = [ProcessorTask(service, spec, [p], p, make(p)) for p in owned]
    async with asyncio.TaskGroup() as group:
        started = [spawn(task.start(), f"{spec.stage} starts", group) for task in tasks]
        await asyncio.wait(started)
        service.ready()
        watchdog = LoopWatchdog(
            lambda: f"{spec.stage} processes {', '.join(task.current for task in tasks)}", _SILENT_S
        )
        beating = spawn(watchdog.beat(), f"{spec.stage} beats", group)
        await asyncio.wait([spawn(task.run(), f"{spec.stage} task {task.key}", group) for task in tasks])
        beating.cancel()


class ProcessorTask:
    """One processor, its input partitions and its transactional producer."""

    def __init__(
        self, service: ServiceContext, spec: ProcessorSpec, partitions: list[int], key: int | None, processor: Processor
    ) -> None:
        self.key = "all" if key is None else key
        self.current = "nothing"
        """What the processor was given last, for the loop's watchdog."""
        self._service = service
        self._spec = spec
        self._partitions = partitions
        self._processor = processor
        self._group = f"{service.run_context.run}.{spec.stage}"
        self._writer = TransactionalWriter(service.log, f"{self._group}.{spec.input}.{self.key}")
        self._trackers: dict[Key, OffsetTracker] = {}
        self._positions: dict[Key, int | None] = {}
        self._prefetcher = Prefetcher(service, spec, self._group, self._positions, self._trackers)
        self._dirty: set[Key] = set()
        self._committed: dict[Key, tuple[int, str]] = {}
        self._written_s = -_LINGER_S

    async def start(self) -> None:
        """Fence the predecessor, read what it committed, and show the processor its own outputs."""
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
        if spec.own_outputs is not None:
            for event, record in await read_tail(log, spec.own_outputs, own, time.time()):
                self._processor.on_own_output(event, record)
            await self._begin_extra_inputs_at(spec.own_outputs)
        self._service.add_status(self._waiting)

    async def _begin_extra_inputs_at(self, tail: Tail) -> None:
        """Where the broker has lost committed offsets of extra inputs, begin these with `tail`: older ones may be over.

        The input itself is read from its beginning: every record of it must have a disposition, whatever the processor
        still knows of it.
        """
        for topic in self._spec.extra_inputs:
            missing = [p for p in self._partitions if self._positions[(topic, p)] is None]
            found = await offsets_at_tail(self._service.log, tail, topic, missing, time.time())
            for partition, offset in found.items():
                key = (topic, partition)
                self._positions[key], self._trackers[key] = offset, OffsetTracker(offset)
                self._committed[key] = (offset, "")
        if self._committed:
            await self._writer.write([], self._group, self._committed)

    def _waiting(self) -> list[str]:
        """What the processor waits for, and the inputs that are paused because the commit metadata is nearly full."""
        paused = [
            f"reads no more of {topic}/{partition} until its oldest unfinished record ends"
            for (topic, partition), tracker in self._trackers.items()
            if tracker.full
        ]
        return [*self._processor.waiting(time.time()), *paused]

    async def run(self) -> None:
        """Process records until the service stops, one transaction after another."""
        try:
            async with asyncio.TaskGroup() as tasks:
                reading = spawn(self._prefetcher.run(), f"{self._spec.stage} reads", tasks)
                while not self._service.stopping.is_set():
                    outputs = self._process(await self._next_records())
                    await self._write(outputs)
                reading.cancel()
        finally:
            await self._writer.close()

    async def _next_records(self) -> list[Record | Position]:
        """What was read, gathered for `_LINGER_S` since the last transaction; empty at a deadline or after a while."""
        records = list(await self._prefetcher.take(self._patience_s()))
        if records and (early_s := self._written_s + _LINGER_S - time.monotonic()) > 0:
            await asyncio.sleep(early_s)
        while len(records) < MAX_RECORDS and (more := self._prefetcher.take_now()):
            records.extend(more)
        return records

    def _patience_s(self) -> float:
        due = self._processor.next_time_s()
        return POLL_S if due is None else min(POLL_S, max(0.0, due - time.time()))

    def _process(self, records: list[Record | Position]) -> list[Output]:
        """The outputs of `records` and of the deadlines that have passed."""
        now_s = time.time()
        outputs: list[Output] = []
        for record in records:
            if isinstance(record, Position):
                self._trackers[(record.topic, record.partition)].advance(record.offset)
                self._dirty.add((record.topic, record.partition))
            else:
                outputs.extend(self._process_record(record, now_s))
        due = self._processor.next_time_s()
        if due is not None and due <= now_s:
            self.current = "its deadlines"
            outputs.extend(self._apply(self._processor.on_time(now_s)))
        return outputs

    def _process_record(self, record: Record, now_s: float) -> list[Output]:
        self.current = place(record.ref)
        tracker = self._trackers.get((record.topic, record.partition))
        if tracker is not None:
            self._prefetcher.note_begun(record)
            if tracker.is_finished(record.offset):
                return []
            tracker.begin(record.offset)
            self._dirty.add((record.topic, record.partition))
        processor = self._processor
        try:
            event = event_of(record)
            result = (processor.on_side_input if tracker is None else processor.on_event)(event, record, now_s)
        except (UndecodableError, Poison) as error:
            if tracker is None:
                return []  # a side input belongs to another stage, or to the dispatcher, which writes its dead letter
            if record.topic != self._spec.input:
                return self._apply(ProcessResult(finished=(record.ref,)))
            logger.warning("%s: dead letter %s: %s", self._spec.stage, record.ref, error)
            digest = self._service.run_context.config_digest
            refused = dead_letter(record, self._spec.stage, str(error), now_s, digest)
            return self._apply(ProcessResult((refused,), (record.ref,)))
        return self._apply(result, record)

    def _apply(self, result: ProcessResult, record: Record | None = None) -> list[Output]:
        """Finish what `result` finishes; its outputs, of which `record` is the cause where they name none."""
        for ref in result.finished:
            self._trackers[(ref.topic, ref.partition)].finish(ref.offset)
            self._dirty.add((ref.topic, ref.partition))
        if record is None:
            return list(result.outputs)
        return [
            output if output.cause is not None else Output(output.topic, output.event, output.key, record, output.links)
            for output in result.outputs
        ]

    async def _write(self, outputs: list[Output]) -> None:
        """One transaction with the outputs and the offsets that moved; none where there is neither."""
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
