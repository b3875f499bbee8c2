"""Stateful stages, exactly once: the aggregator and the batcher.

A stage is a pure state machine (`Fold`) that turns input records into outputs and says which inputs are done with. The
runner gives it the records in log order, and writes outputs and consumed offsets in one transaction. There is no
changelog: inputs that are not finished are delivered again after a restart and rebuild the state (DESIGN section 5).
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, Protocol

from schemas import Event, Ref, UndecodableError
from streams import names, tracing
from streams.deadletters import dead_letter, event_of
from streams.errors import Poison
from streams.reader import Reader
from streams.recall import Recall, passed_over, recalled
from streams.record import Output, Record
from streams.scope import Scope
from streams.tracker import OffsetTracker
from streams.transaction import TransactionalWriter
from streams.watchdog import Watchdog

logger = logging.getLogger(__name__)

_POLL_S: Final = 0.1
_MAX_RECORDS: Final = 500
_QUEUE: Final = 4

_LINGER_S: Final = 0.04
"""Between the beginnings of two transactions, where input waits: each costs the broker six requests and its log some
markers, whatever it holds."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What one call of a fold leads to: events to write and input records that are done with."""

    outputs: tuple[Output, ...] = ()
    finished: tuple[Ref, ...] = ()


class Fold(Protocol):
    """A pure state machine over input records; it has no clock and does no I/O."""

    def on_event(self, event: Event, record: Record, now_s: float) -> Turn:
        """An input record. Poison: it goes to the dead letters."""

    def on_observed(self, event: Event, record: Record, now_s: float) -> Turn:
        """A record of a side topic, which is read from its beginning at every start and never committed."""

    def on_recalled(self, event: Event, record: Record) -> None:
        """An earlier output of this stage, at start and before any input."""

    def on_time(self, now_s: float) -> Turn:
        """Deadlines: called once `next_time_s` has passed."""

    def next_time_s(self) -> float | None:
        """The unix time at which `on_time` is wanted, if any."""

    def waiting(self, now_s: float) -> list[str]:
        """What it waits for, in sentences for `eachprompt status`."""


@dataclass(frozen=True)
class FoldSpec:
    """A stage: its name, its input, side topics, which own outputs it recalls, and one fold a partition or over all.

    `also` are further inputs with as many partitions: delivered, finished and committed as the input's records are. At
    start they come first, up to where they end then. Another stage writes the letters of those that are unreadable.
    """

    stage: str
    input: str
    observe: tuple[str, ...] = ()
    recall: Recall | None = None
    shard: Literal["partition", "all"] = "partition"
    also: tuple[str, ...] = ()


async def run_fold(scope: Scope, spec: FoldSpec, make: Callable[[int | None], Fold]) -> None:
    """Run the stage's shards that this replica owns until the service is asked to stop."""
    context = scope.context
    owned = scope.log.owned(spec.input, context.ordinal, context.replicas)
    shards = [_Shard(scope, spec, [p], p, make(p)) for p in owned] if spec.shard == "partition" else []
    if spec.shard == "all":
        if context.replicas != 1:
            raise ValueError(f"stage {spec.stage} runs as one instance and not as {context.replicas}")
        shards = [_Shard(scope, spec, list(owned), None, make(None))]
    async with asyncio.TaskGroup() as tasks:
        started = [tasks.create_task(shard.start(), name=f"{spec.stage} starts") for shard in shards]
        await asyncio.wait(started)
        scope.ready()
        for shard in shards:
            tasks.create_task(shard.run(), name=f"{spec.stage} shard {shard.key}")


class _Position(NamedTuple):
    """Nothing more comes below `offset` of an input partition."""

    topic: str
    partition: int
    offset: int


_Key = tuple[str, int]  # topic and partition

_Queue = asyncio.Queue[Sequence[Record | _Position]]


class _Shard:
    """One fold, its input partitions and its transactional producer."""

    def __init__(self, scope: Scope, spec: FoldSpec, partitions: list[int], key: int | None, fold: Fold) -> None:
        self.key = "all" if key is None else key
        self._scope = scope
        self._spec = spec
        self._partitions = partitions
        self._fold = fold
        self._group = f"{scope.context.run}.{spec.stage}"
        self._writer = TransactionalWriter(scope.log, f"{self._group}.{spec.input}.{self.key}")
        self._trackers: dict[_Key, OffsetTracker] = {}
        self._positions: dict[_Key, int | None] = {}
        self._ahead: Counter[_Key] = Counter()  # records in the queue
        self._dirty: set[_Key] = set()
        self._committed: dict[_Key, tuple[int, str]] = {}
        self._written_s = -_LINGER_S

    async def start(self) -> None:
        """Fence the predecessor, read what it committed, recall its outputs."""
        await self._writer.open()
        log, spec = self._scope.log, self._spec
        own = None if self.key == "all" else int(self.key)
        inputs = (spec.input, *spec.also)
        found = await asyncio.gather(*[log.committed(self._group, topic, self._partitions) for topic in inputs])
        for topic, committed in zip(inputs, found, strict=True):
            for partition in self._partitions:
                offset, metadata = committed.get(partition, (0, ""))
                self._trackers[(topic, partition)] = OffsetTracker.restore(offset, metadata)
                self._positions[(topic, partition)] = offset if partition in committed else None
        if spec.recall is not None:
            for event, record in await recalled(log, spec.recall, own, time.time()):
                self._fold.on_recalled(event, record)
            await self._pass_over(spec.recall)
        self._scope.add_status(self._waiting)

    async def _pass_over(self, recall: Recall) -> None:
        """Where the broker forgot what was committed, begin `also` with what is recalled: what is older may have ended.
        A record of the input itself must have its end, whatever the fold can still say of it.
        """
        for topic in self._spec.also:
            missing = [p for p in self._partitions if self._positions[(topic, p)] is None]
            for partition, offset in (await passed_over(self._scope.log, recall, topic, missing, time.time())).items():
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
        """Fold records until the service stops; every turn is one transaction."""
        log, spec = self._scope.log, self._spec
        observed: dict[_Key, int | None] = {(t, p): None for t in spec.observe for p in log.partitions(t)}
        queue: _Queue = asyncio.Queue(_QUEUE)
        try:
            async with asyncio.TaskGroup() as tasks:
                first = {topic: asyncio.Event() for topic in spec.also}
                pumps = [
                    tasks.create_task(self._pump(topic, queue, (), begun), name=f"{spec.stage} reads {topic}")
                    for topic, begun in first.items()
                ]
                reading = self._pump(spec.input, queue, list(first.values()), asyncio.Event())
                pumps.append(tasks.create_task(reading, name=f"{spec.stage} reads {spec.input}"))
                if observed:
                    pumps.append(tasks.create_task(self._pump_observed(observed, queue), name=f"{spec.stage} observes"))
                while not self._scope.stopping.is_set():
                    await self._turn(queue)
                for pump in pumps:
                    pump.cancel()
        finally:
            await self._writer.close()

    async def _pump(self, topic: str, queue: _Queue, after: Sequence[asyncio.Event], caught_up: asyncio.Event) -> None:
        """Read `topic` into `queue` once all of `after` are set; set `caught_up` at where the topic ended at start."""
        keys = [(topic, partition) for partition in self._partitions]
        told: dict[_Key, int] = {}
        watchdog = Watchdog()
        for event in after:
            await event.wait()
        async with Reader(self._scope.log, {key: self._positions[key] for key in keys}, self._group) as reader:
            ends = await reader.ends()
            while True:
                held = any(self._trackers[key].full_with(self._ahead[key]) for key in keys)
                if not caught_up.is_set() and (held or all([await reader.position(*k) >= ends[k] for k in keys])):
                    caught_up.set()
                if held:
                    # The commit metadata is nearly full: deadlines will finish records and make room. No wait for
                    # the stop of the service: once that has come, it would yield to nobody any more.
                    await asyncio.sleep(_POLL_S)
                    continue
                records = await reader.poll(_POLL_S, max_records=_MAX_RECORDS)
                if records:
                    self._ahead.update((record.topic, record.partition) for record in records)
                    await queue.put(records)
                    continue
                if (positions := await reader.positions()) != told:
                    # Drained: behind the records in the queue there are only transaction markers up to here.
                    await queue.put([_Position(t, p, position) for (t, p), position in positions.items()])
                    told = positions
                await watchdog.look(reader)

    async def _pump_observed(self, positions: dict[_Key, int | None], queue: _Queue) -> None:
        watchdog = Watchdog()
        async with Reader(self._scope.log, positions) as reader:
            while True:
                records = await reader.poll(_POLL_S, max_records=_MAX_RECORDS)
                if records:
                    await queue.put(records)
                else:
                    await watchdog.look(reader)

    async def _turn(self, queue: _Queue) -> None:
        """Take what is there (or wait for it, or for a deadline), fold it, write it."""
        records: Sequence[Record | _Position] = ()
        try:
            async with asyncio.timeout(self._patience_s()):
                records = await queue.get()
        except TimeoutError:
            pass
        if records and (early_s := self._written_s + _LINGER_S - time.monotonic()) > 0:
            await asyncio.sleep(early_s)
        while not queue.empty() and len(records) < _MAX_RECORDS:
            records = [*records, *queue.get_nowait()]
        now_s = time.time()
        outputs: list[Output] = []
        for record in records:
            if isinstance(record, _Position):
                self._trackers[(record.topic, record.partition)].advance(record.offset)
                self._dirty.add((record.topic, record.partition))
            else:
                outputs.extend(self._take(record, now_s))
        due = self._fold.next_time_s()
        if due is not None and due <= now_s:
            outputs.extend(self._apply(self._fold.on_time(now_s)))
        await self._write(outputs)

    def _patience_s(self) -> float:
        due = self._fold.next_time_s()
        return _POLL_S if due is None else min(_POLL_S, max(0.0, due - time.time()))

    def _take(self, record: Record, now_s: float) -> list[Output]:
        tracker = self._trackers.get((record.topic, record.partition))
        if tracker is not None:
            self._ahead[(record.topic, record.partition)] -= 1
            if tracker.is_finished(record.offset):
                return []
            tracker.begin(record.offset)
            self._dirty.add((record.topic, record.partition))
        try:
            event = event_of(record)
            turn = (self._fold.on_observed if tracker is None else self._fold.on_event)(event, record, now_s)
        except (UndecodableError, Poison) as error:
            if tracker is None:
                return []  # a side topic's record belongs to another stage, or to the dispatcher: it has its letter
            if record.topic != self._spec.input:
                return self._apply(Turn(finished=(record.ref,)))
            logger.warning("%s: dead letter %s: %s", self._spec.stage, record.ref, error)
            letter = dead_letter(record, self._spec.stage, str(error), now_s)
            return self._apply(Turn((letter,), (record.ref,)))
        return self._apply(turn, record)

    def _apply(self, turn: Turn, record: Record | None = None) -> list[Output]:
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
