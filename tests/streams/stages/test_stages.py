"""Workers, folds and readers on real brokers: what is finished is committed, what is not comes again."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from schemas import (
    Event,
    GroupDropped,
    Member,
    Ref,
    RolloutDisposed,
    RolloutScored,
    StepCompleted,
    decode,
    encode,
    partition_of,
)
from streams.blobs.store import BlobStore
from streams.broker import Broker
from streams.context import RunContext
from streams.errors import MissingRecordError, Poison, StreamsError
from streams.log.admin import Admin, TopicSpec
from streams.log.clients import Log, LogSettings, Writer
from streams.log.dead_letters import place
from streams.log.fetch import RecordFetcher
from streams.log.history import read_topic
from streams.log.reader import Reader
from streams.log.tail import Tail, read_tail, read_to_end
from streams.log.transaction import TransactionalWriter
from streams.record import Output, Record
from streams.runtime.service_context import ServiceContext
from streams.stages.follower import follow
from streams.stages.processor import ProcessorSpec, ProcessResult
from streams.stages.runner import run_processor
from streams.stages.worker import Emit, WorkerSpec, run_worker

PARTITIONS = 2


@pytest.fixture
def run(broker: Broker, prefix: str) -> str:
    specs = [
        TopicSpec(f"{prefix}.{name}", PARTITIONS if name in ("scores", "groups") else 1)
        for name in ("scores", "groups", "steps", "dead-letters")
    ]
    with Admin(broker.bootstrap) as admin:
        admin.create_topics(specs)
    return prefix


@pytest.fixture
def log(broker: Broker, run: str) -> Log:
    return Log(LogSettings(broker.bootstrap, run, PARTITIONS), "test")


@asynccontextmanager
async def scope_of(log: Log, tmp_path: Path, drain_s: float = 30.0) -> AsyncIterator[ServiceContext]:
    context = RunContext(
        log.settings.run, tmp_path, log.settings.bootstrap, PARTITIONS, (tmp_path / "blobs").as_uri(), drain_s=drain_s
    )
    async with asyncio.TaskGroup() as tasks:
        service = ServiceContext("test", context, log, BlobStore(context.blob_uri), tasks)
        yield service
        service.stopping.set()
        service.cancel_spawned()


def scored(group: str, index: int) -> Output:
    event = RolloutScored(
        rollout_id=f"{group}.{index}",
        group_id=group,
        prompt_id=group,
        index=index,
        attempt=0,
        rollout=Ref("rollouts", 0, index),
        task="t",
        samples=2,
        deadline_s=0.0,
        valid=True,
        time_s=0.0,
    )
    return Output("scores", event, key=group)


async def until(what: str, condition: Callable[[], bool], deadline_s: float = 60.0) -> None:
    async with asyncio.timeout(deadline_s):
        while not condition():
            await asyncio.sleep(0.01)


async def everything(log: Log, topic: str) -> list[Event]:
    records = await read_to_end(log, {(topic, p): None for p in log.partitions(topic)})
    return [decode(record.value) for record in records]


class Collector:
    """A worker that emits a disposal for each score, chokes on some and holds others until released."""

    def __init__(self, hold: set[str] | None = None) -> None:
        self.seen: list[str] = []
        self.hold = hold or set()
        self.released = asyncio.Event()

    async def handle(self, event: Event, record: Record, emit: Emit) -> None:
        assert isinstance(event, RolloutScored)
        self.seen.append(event.rollout_id)
        if event.group_id == "poison":
            raise Poison("this one never works")
        if event.rollout_id in self.hold:
            await self.released.wait()
        await emit(
            Output(
                "groups",
                RolloutDisposed(
                    rollout_id=event.rollout_id,
                    group_id=event.group_id,
                    rollout=record.ref,
                    disposition="expired",
                    time_s=0.0,
                ),
                key=event.group_id,
            )
        )


SPEC = WorkerSpec("collect", "scores", 16, (RolloutScored,))


async def test_a_worker_finishes_out_of_order_and_takes_only_the_unfinished_again(log: Log, tmp_path: Path) -> None:
    async with Writer(log) as writer:
        for group in ("a", "b", "c", "poison"):
            for index in range(3):
                await writer.write(scored(group, index))
    first = Collector(hold={"a.1", "c.0"})
    async with scope_of(log, tmp_path, drain_s=1.0) as service:
        task = service.spawn(run_worker(service, SPEC, first), "worker")
        await until("all are seen", lambda: len(first.seen) == 12)
        await until("in hand", lambda: "2 records in flight" in " ".join(service.waits(time.time())))
        service.stopping.set()
        await task
    second = Collector()
    async with scope_of(log, tmp_path) as service:
        task = service.spawn(run_worker(service, SPEC, second), "worker")
        await until("the held ones come again", lambda: len(second.seen) >= 2)
        service.stopping.set()
        await task
    assert sorted(second.seen) == ["a.1", "c.0"]
    disposed = [event.rollout_id for event in await everything(log, "groups") if isinstance(event, RolloutDisposed)]
    assert sorted(disposed) == [f"{g}.{i}" for g in "abc" for i in range(3)]


async def test_undecodable_and_poisonous_records_become_dead_letters_with_their_bytes(
    log: Log, tmp_path: Path, run: str
) -> None:
    producer = log.producer()
    await producer.start()
    await producer.send_and_wait(f"{run}.scores", b"\xc1 junk", partition=0)
    await producer.send_and_wait(f"{run}.scores", b"\x81\xa4type\xadStepCompleted", partition=0)
    await producer.stop()
    async with Writer(log) as writer:
        await writer.write(scored("a", 0))
        await writer.write(scored("poison", 0))
    worker = Collector()
    async with scope_of(log, tmp_path) as service:
        task = service.spawn(run_worker(service, SPEC, worker), "worker")
        await until("both are seen", lambda: len(worker.seen) == 2)
        service.stopping.set()
        await task
    letters = await everything(log, "dead-letters")
    assert {getattr(letter, "data", b"")[:6] for letter in letters} >= {b"\xc1 junk"}
    assert len(letters) == 3
    assert any("this one never works" in getattr(letter, "error", "") for letter in letters)


class Pairs:
    """A fold that closes a group when two scores are in."""

    def __init__(self) -> None:
        self.open: dict[str, list[Record]] = {}
        self.recalled: list[str] = []
        self.steps: list[int] = []

    def on_event(self, event: Event, record: Record, now_s: float) -> ProcessResult:
        if not isinstance(event, RolloutScored):
            raise Poison(f"{type(event).__name__} is not a score")
        members = self.open.setdefault(event.group_id, [])
        members.append(record)
        if len(members) < 2:
            return ProcessResult()
        del self.open[event.group_id]
        dropped = GroupDropped(
            group_id=event.group_id,
            prompt_id=event.prompt_id,
            task="t",
            reason="zero_variance",
            members=tuple(Member(rollout_id=f"{r.offset}", rollout=r.ref) for r in members),
            time_s=now_s,
        )
        return ProcessResult((Output("groups", dropped, key=event.group_id),), tuple(r.ref for r in members))

    def on_side_input(self, event: Event, record: Record, now_s: float) -> ProcessResult:
        assert isinstance(event, StepCompleted)
        self.steps.append(event.step)
        return ProcessResult()

    def on_own_output(self, event: Event, record: Record) -> None:
        assert isinstance(event, GroupDropped)
        self.recalled.append(event.group_id)

    def on_time(self, now_s: float) -> ProcessResult:
        return ProcessResult()

    def next_time_s(self) -> float | None:
        return None

    def waiting(self, now_s: float) -> list[str]:
        return [f"waits for the second score of {group}" for group in self.open]


FOLD = ProcessorSpec("pairs", "scores", ("steps",), Tail("groups", horizon_s=3600.0), "one")


def step(number: int) -> Output:
    return Output(
        "steps",
        StepCompleted(step=number, batch=number, batch_ref=Ref("batches", 0, 0), version=1, metrics={}, time_s=0),
    )


async def test_a_fold_rebuilds_its_state_from_unfinished_inputs(log: Log, tmp_path: Path) -> None:
    async with Writer(log) as writer:
        for group in ("a", "b", "c"):
            await writer.write(scored(group, 0))
        await writer.write(scored("b", 1))
        await writer.write(step(0))
    fold = Pairs()
    async with scope_of(log, tmp_path) as service:
        task = service.spawn(run_processor(service, FOLD, lambda _: fold), "fold")
        await until("b is closed", lambda: sorted(fold.open) == ["a", "c"] and fold.steps == [0])
        async with asyncio.timeout(60):
            while not await everything(log, "groups"):
                pass
        # Killed, not stopped: what was not committed must come again.
        task.cancel()
    async with Writer(log) as writer:
        await writer.write(scored("a", 1))
    again = Pairs()
    async with scope_of(log, tmp_path) as service:
        task = service.spawn(run_processor(service, FOLD, lambda _: again), "fold")
        await until("a is closed", lambda: sorted(again.open) == ["c"])
        assert "waits for the second score of c" in service.waits(time.time())
        service.stopping.set()
        await task
    dropped = [event.group_id for event in await everything(log, "groups") if isinstance(event, GroupDropped)]
    assert sorted(dropped) == ["a", "b"]
    assert again.recalled == ["b"]


async def test_nothing_of_an_aborted_transaction_is_seen(log: Log) -> None:
    writer = TransactionalWriter(log, f"{log.settings.run}.writer")
    await writer.open()
    await writer.write([scored("a", 0)])
    successor = TransactionalWriter(log, f"{log.settings.run}.writer")
    await successor.open()
    with pytest.raises(Exception, match=r"has taken over|failed"):
        await writer.write([scored("a", 1)])
    await successor.write([scored("a", 2)])
    seen = [event.rollout_id for event in await everything(log, "scores") if isinstance(event, RolloutScored)]
    assert seen == ["a.0", "a.2"]
    await writer.close()
    await successor.close()


async def test_recall_reads_the_tail_past_transaction_markers(log: Log) -> None:
    writer = TransactionalWriter(log, f"{log.settings.run}.steps")
    await writer.open()
    for number in range(5):
        await writer.write([step(number)])
    await writer.close()
    found = await read_tail(log, Tail("steps", newest=2), None, time.time())
    steps = [event.step for event, _ in found if isinstance(event, StepCompleted)]
    assert steps[-2:] == [3, 4]
    assert len(steps) <= 4


async def test_recall_goes_further_back_until_it_holds_what_is_wanted(log: Log) -> None:
    """A batch number must not begin at 0 again because much else was written behind the last batch."""
    writer = TransactionalWriter(log, f"{log.settings.run}.steps")
    await writer.open()
    await writer.write([step(7)])
    await writer.write([Output("steps", scored("other", index).event) for index in range(40)])
    await writer.close()
    # Kafka says that a transaction is committed before its markers stand; whoever fences its writer waits for them.
    successor = TransactionalWriter(log, f"{log.settings.run}.steps")
    await successor.open()
    await successor.close()
    assert not await read_tail(log, Tail("steps", newest=0), None, time.time())

    def holds_step(event: Event) -> bool:
        return isinstance(event, StepCompleted)

    def holds_drop(event: Event) -> bool:
        return isinstance(event, GroupDropped)

    for holding in (holds_step, holds_drop):
        tail = Tail("steps", newest=2, holding=holding)
        found = await read_tail(log, tail, None, time.time())
        assert [type(event) for event, _ in found].count(StepCompleted) == 1


class Hoard(Pairs):
    """A fold that finishes nothing."""

    begun = 0

    def on_event(self, event: Event, record: Record, now_s: float) -> ProcessResult:
        self.begun += 1
        return ProcessResult()


@pytest.mark.timeout(120)  # a stage that does not stop spins, so that no other deadline is heard
async def test_a_fold_counts_what_it_has_read_ahead_and_stops_while_it_is_full(
    log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a transaction is written, records queue up: they are begun later, and the metadata must hold them."""
    monkeypatch.setattr("streams.stages.offsets.MAX_SPAN", 10)
    monkeypatch.setattr("streams.stages.offsets.MAX_LISTED_BYTES", 600)
    monkeypatch.setattr("streams.stages.offsets.MAX_MIXED_BYTES", 60)
    monkeypatch.setattr("streams.stages.runner._LINGER_S", 0.5)
    producer = log.producer()
    await producer.start()
    sending = [await producer.send(log.full("scores"), encode(scored("g", n).event), partition=0) for n in range(4000)]
    await asyncio.gather(*sending)
    await producer.stop()
    hoard = Hoard()
    async with scope_of(log, tmp_path) as service:
        task = service.spawn(
            run_processor(service, ProcessorSpec("hoard", "scores", tasks="one"), lambda _: hoard), "fold"
        )
        await until("it reads no more", lambda: any("reads no more" in line for line in service.waits(0.0)))
        await asyncio.sleep(1.5)
        service.stopping.set()
        await task
    assert 600 <= hoard.begun < 600 + 500


async def work(service: ServiceContext) -> None:
    await run_worker(service, SPEC, Collector())


async def fold(service: ServiceContext) -> None:
    await run_processor(service, ProcessorSpec("pairs", "scores", tasks="one"), lambda _: Pairs())


class Bystander(Pairs):
    """A fold that sees whatever comes on its side topic."""

    def on_side_input(self, event: Event, record: Record, now_s: float) -> ProcessResult:
        return ProcessResult()


async def fold_beside(service: ServiceContext) -> None:
    """With the stuck topic at its side."""
    await run_processor(service, ProcessorSpec("pairs", "groups", ("scores",), tasks="one"), lambda _: Bystander())


async def follower(service: ServiceContext) -> None:
    await follow(service, ["scores"], on=lambda event, record: None)


@pytest.mark.parametrize("serve", [fold, follower])
async def test_who_reads_on_and_whose_reader_is_stuck_ends(
    log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serve: Callable[[ServiceContext], Awaitable[None]]
) -> None:
    monkeypatch.setattr("streams.log.stall._CHECK_EVERY_S", 0.0)
    monkeypatch.setattr("streams.log.stall.STALLED_S", 0.5)
    entered = Reader.__aenter__

    async def stuck(self: Reader) -> Reader:
        reader = await entered(self)
        self.pause("scores", log.partitions("scores"))
        return reader

    async with Writer(log) as writer:
        await writer.write(scored("a", 0))
    monkeypatch.setattr(Reader, "__aenter__", stuck)
    with pytest.raises(ExceptionGroup) as raised:
        async with asyncio.timeout(60), scope_of(log, tmp_path) as service:
            await serve(service)
    assert raised.group_contains(StreamsError, match=r"scores/\d ends at 1 and has been read no further than 0")


@pytest.mark.parametrize("serve", [work, fold, fold_beside])
async def test_one_stuck_partition_among_busy_ones_is_noticed(
    log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serve: Callable[[ServiceContext], Awaitable[None]]
) -> None:
    monkeypatch.setattr("streams.log.stall._CHECK_EVERY_S", 0.0)
    monkeypatch.setattr("streams.log.stall.STALLED_S", 0.5)
    stuck, busy = (next(f"g{n}" for n in range(100) if partition_of(f"g{n}", PARTITIONS) == p) for p in (0, 1))
    entered, polled = Reader.__aenter__, Reader.poll

    async def half_stuck(self: Reader) -> Reader:
        reader = await entered(self)
        if ("scores", 0) in self._positions:
            self.pause("scores", [0])
        return reader

    async def always_something(self: Reader, timeout_s: float, max_records: int | None = None) -> list[Record]:
        while not (records := await polled(self, timeout_s, max_records)) and ("scores", 0) in self._positions:
            pass
        return records

    async def keep_busy(writer: Writer) -> None:
        for index in range(2000):
            await writer.write(scored(busy, index))
            await asyncio.sleep(0.01)

    monkeypatch.setattr(Reader, "__aenter__", half_stuck)
    monkeypatch.setattr(Reader, "poll", always_something)
    async with Writer(log) as writer:
        await writer.write(scored(stuck, 0))
        writing = asyncio.create_task(keep_busy(writer))
        with pytest.raises(ExceptionGroup) as raised:
            async with asyncio.timeout(60), scope_of(log, tmp_path) as service:
                await serve(service)
        writing.cancel()
        await asyncio.wait([writing])
    assert raised.group_contains(StreamsError, match="scores/0 ends at 1 and has been read no further than 0")


class Endless(Pairs):
    """A fold that does not return, until the deadman would have ended the process."""

    def __init__(self) -> None:
        super().__init__()
        self.ended = threading.Event()
        self.why: list[str] = []

    def end(self, why: str) -> None:
        self.why.append(why)
        self.ended.set()

    def on_event(self, event: Event, record: Record, now_s: float) -> ProcessResult:
        assert self.ended.wait(60)
        return super().on_event(event, record, now_s)


async def test_a_fold_that_does_not_return_ends_its_process(
    log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = Endless()
    monkeypatch.setattr("streams.runtime.loop_watchdog.end_process", endless.end)
    monkeypatch.setattr("streams.stages.runner._SILENT_S", 0.6)
    async with Writer(log) as writer:
        ref = await writer.write(scored("a", 0))
    async with asyncio.timeout(90), scope_of(log, tmp_path) as service:
        service.spawn(run_processor(service, ProcessorSpec("pairs", "scores", tasks="one"), lambda _: endless), "fold")
        await until("it was noticed", endless.ended.is_set)
    assert endless.why == [f"pairs processes {place(ref)}: nothing else ran for 0.6 s"]


async def test_records_are_fetched_by_reference_in_the_order_asked_for(log: Log) -> None:
    async with Writer(log) as writer:
        refs = [await writer.write(scored(f"g{index % 7}", index)) for index in range(200)]
    async with RecordFetcher(log, "scores") as fetcher:
        wanted = [refs[150], refs[3], refs[77], refs[3], refs[199]]
        records = await fetcher.fetch(wanted, 10.0)
        assert [record.ref for record in records] == wanted
        with pytest.raises(MissingRecordError, match="scores/7@0 is not on the log"):
            await fetcher.fetch([Ref("scores", 7, 0)], 10.0)
        assert [r.ref for r in await fetcher.fetch([refs[0]], 10.0)] == [refs[0]]


async def test_follow_tells_when_it_has_caught_up_and_goes_on(log: Log, tmp_path: Path) -> None:
    seen: list[int] = []
    async with Writer(log) as writer:
        for number in range(3):
            await writer.write(step(number))
        async with scope_of(log, tmp_path) as service:
            caught_up = asyncio.Event()
            service.spawn(
                follow(service, ["steps"], on=lambda e, r: seen.append(getattr(e, "step", -1)), caught_up=caught_up),
                "f",
            )
            async with asyncio.timeout(60):
                await caught_up.wait()
            assert seen == [0, 1, 2]
            await writer.write(step(3))
            await until("the new one", lambda: seen == [0, 1, 2, 3])


async def test_history_of_a_plain_writer_comes_with_its_headers(log: Log) -> None:
    async with Writer(log) as writer:
        for index in range(20):
            await writer.write(scored(f"g{index}", index))
    records = await asyncio.to_thread(lambda: list(read_topic(log.settings.bootstrap, log.settings.run, "scores")))
    assert len(records) == 20
    assert {record.headers["run"] for record in records} == {log.settings.run.encode()}
    late = await asyncio.to_thread(
        lambda: list(read_topic(log.settings.bootstrap, log.settings.run, "scores", since_s=time.time() + 3600))
    )
    assert late == []


async def test_a_reader_position_passes_transaction_markers(log: Log) -> None:
    writer = TransactionalWriter(log, f"{log.settings.run}.w")
    await writer.open()
    await writer.write([step(1)])
    await writer.close()
    async with Reader(log, {("steps", 0): None}) as reader:
        ends = await reader.ends()
        assert len(await reader.poll(30.0)) == 1
        async with asyncio.timeout(30):
            while await reader.position("steps", 0) < ends[("steps", 0)]:
                await reader.poll(0.2)


async def test_a_stage_that_has_nothing_to_do_has_no_lag(log: Log, tmp_path: Path, run: str) -> None:
    """Transaction markers at the end of the input take offsets, which the stages pass once they have drained it."""
    writer = TransactionalWriter(log, f"{run}.before")
    await writer.open()
    for group in ("a", "b"):
        await writer.write([scored(group, 0), scored(group, 1)])
    await writer.close()

    def lags() -> list[int]:
        with Admin(log.settings.bootstrap) as admin:
            return [sum(admin.lag(f"{run}.{stage}", [f"{run}.scores"]).values()) for stage in ("pairs", "collect")]

    async with scope_of(log, tmp_path) as service:
        fold = ProcessorSpec("pairs", "scores", (), None, "one")
        tasks = [service.spawn(run_processor(service, fold, lambda _: Pairs()), "fold")]
        tasks.append(service.spawn(run_worker(service, SPEC, Collector()), "worker"))
        async with asyncio.timeout(60):
            while await asyncio.to_thread(lags) != [0, 0]:
                await asyncio.sleep(0.05)
        service.stopping.set()
        await asyncio.gather(*tasks)


async def test_history_is_read_up_to_now_and_without_what_was_not_committed(log: Log) -> None:
    writer = TransactionalWriter(log, f"{log.settings.run}.w")
    await writer.open()
    written = [await writer.write([scored(f"g{index}", index)]) for index in range(20)]
    await writer.close()

    def scanned(**window: float) -> list[Record]:
        return list(read_topic(log.settings.bootstrap, log.settings.run, "scores", **window))

    records = await asyncio.to_thread(scanned)
    assert sorted(record.ref for record in records) == sorted(ref for refs in written for ref in refs)
    assert await asyncio.to_thread(lambda: scanned(since_s=time.time() + 3600)) == []
    assert await asyncio.to_thread(lambda: scanned(until_s=time.time() - 3600)) == []
    with pytest.raises(StreamsError, match="weights"):
        await asyncio.to_thread(lambda: list(read_topic(log.settings.bootstrap, log.settings.run, "weights")))


async def test_an_idle_reader_does_not_spin(log: Log) -> None:
    """The embedded broker answers empty fetches at once; unpaced, a reader asked it thousands of times a second."""
    async with Reader(log, {("scores", p): None for p in range(PARTITIONS)}) as reader:
        fetcher = reader._consumer._fetcher
        fetch, fetches = fetcher._proc_fetch_request, 0

        async def counted(assignment: object, node_id: object, request: object) -> bool:
            nonlocal fetches
            fetches += 1
            return bool(await fetch(assignment, node_id, request))

        fetcher._proc_fetch_request = counted
        assert await reader.poll(1.0) == []
    assert 0 < fetches < 100
