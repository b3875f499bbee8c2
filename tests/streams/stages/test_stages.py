"""Workers, processors and readers on real brokers: what is finished is committed, what is not comes again."""

import asyncio
import time
from pathlib import Path

from schemas import (
    Event,
    GroupDropped,
    Member,
    RolloutDisposed,
    RolloutScored,
    StepCompleted,
)
from streams.errors import Poison
from streams.log.clients import Log, Writer
from streams.log.tail import Tail
from streams.record import Output, Record
from streams.stages.follower import follow
from streams.stages.processor import ProcessorSpec, ProcessResult
from streams.stages.runner import run_processor
from streams.stages.worker import Emit, WorkerSpec, run_worker
from tests.builders import group_dropped, rollout_disposed, service_of, until
from tests.run_logs import everything, write
from tests.streams.stages.stage_run import scored, step


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
        await emit(Output("groups", rollout_disposed(event.rollout_id, record.ref), key=event.group_id))


SPEC = WorkerSpec("collect", "scores", 16, (RolloutScored,))


async def test_a_worker_finishes_out_of_order_and_takes_only_the_unfinished_again(log: Log, tmp_path: Path) -> None:
    await write(log, *(scored(group, index) for group in ("a", "b", "c", "poison") for index in range(3)))
    first = Collector(hold={"a.1", "c.0"})
    async with service_of(log, tmp_path, drain_s=1.0) as service:
        task = service.spawn(run_worker(service, SPEC, first), "worker")
        await until("all are seen", lambda: len(first.seen) == 12)
        await until("in flight", lambda: "2 records in flight" in " ".join(service.waits(time.time())))
        service.stopping.set()
        await task
    second = Collector()
    async with service_of(log, tmp_path) as service:
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
    await write(log, scored("a", 0), scored("poison", 0))
    worker = Collector()
    async with service_of(log, tmp_path) as service:
        task = service.spawn(run_worker(service, SPEC, worker), "worker")
        await until("both are seen", lambda: len(worker.seen) == 2)
        service.stopping.set()
        await task
    dead_letters = await everything(log, "dead-letters")
    assert {getattr(dead, "data", b"")[:6] for dead in dead_letters} >= {b"\xc1 junk"}
    assert len(dead_letters) == 3
    assert any("this one never works" in getattr(dead, "error", "") for dead in dead_letters)


class Pairs:
    """A processor that closes a group when two scores are in."""

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
        dropped = group_dropped(
            event.group_id,
            *(Member(rollout_id=f"{r.offset}", rollout=r.ref) for r in members),
            prompt_id=event.prompt_id,
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


PAIRS = ProcessorSpec("pairs", "scores", ("steps",), Tail("groups", horizon_s=3600.0), "one")


async def test_a_processor_rebuilds_its_state_from_unfinished_inputs(log: Log, tmp_path: Path) -> None:
    await write(log, *(scored(group, 0) for group in "abc"), scored("b", 1), step(0))
    processor = Pairs()
    async with service_of(log, tmp_path) as service:
        task = service.spawn(run_processor(service, PAIRS, lambda _: processor), "processor")
        await until("b is closed", lambda: sorted(processor.open) == ["a", "c"] and processor.steps == [0])
        async with asyncio.timeout(60):
            while not await everything(log, "groups"):
                pass
        # Killed, not stopped: what was not committed must come again.
        task.cancel()
    await write(log, scored("a", 1))
    again = Pairs()
    async with service_of(log, tmp_path) as service:
        task = service.spawn(run_processor(service, PAIRS, lambda _: again), "processor")
        await until("a is closed", lambda: sorted(again.open) == ["c"])
        assert "waits for the second score of c" in service.waits(time.time())
        service.stopping.set()
        await task
    dropped = [event.group_id for event in await everything(log, "groups") if isinstance(event, GroupDropped)]
    assert sorted(dropped) == ["a", "b"]
    assert again.recalled == ["b"]


async def test_follow_tells_when_it_has_caught_up_and_goes_on(log: Log, tmp_path: Path) -> None:
    seen: list[int] = []
    async with Writer(log) as writer:
        for number in range(3):
            await writer.write(step(number))
        async with service_of(log, tmp_path) as service:
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
