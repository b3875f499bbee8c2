"""Stages that wait, read ahead or are stuck: what they count, and when they end their process."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from schemas import (
    Event,
    encode,
    partition_of,
)
from streams.errors import StreamsError
from streams.log.admin import Admin
from streams.log.clients import Log, Writer
from streams.log.dead_letters import place
from streams.log.reader import Reader
from streams.record import Record
from streams.runtime.service_context import ServiceContext
from streams.stages.follower import follow
from streams.stages.processor import ProcessorSpec, ProcessResult
from streams.stages.runner import run_processor
from streams.stages.worker import run_worker
from tests.builders import service_of, until
from tests.run_logs import transactions, write
from tests.streams.stages.stage_run import PARTITIONS, scored
from tests.streams.stages.test_stages import SPEC, Collector, Pairs


class Hoard(Pairs):
    """A processor that finishes nothing."""

    begun = 0

    def on_event(self, event: Event, record: Record, now_s: float) -> ProcessResult:
        self.begun += 1
        return ProcessResult()


@pytest.mark.timeout(120)  # a stage that does not stop spins, so that no other deadline is heard
async def test_a_processor_counts_what_it_has_read_ahead_and_stops_while_it_is_full(
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
    async with service_of(log, tmp_path) as service:
        task = service.spawn(
            run_processor(service, ProcessorSpec("hoard", "scores", tasks="one"), lambda _: hoard), "processor"
        )
        await until("it reads no more", lambda: any("reads no more" in line for line in service.waits(0.0)))
        await asyncio.sleep(1.5)
        service.stopping.set()
        await task
    assert 600 <= hoard.begun < 600 + 500


async def work(service: ServiceContext) -> None:
    await run_worker(service, SPEC, Collector())


async def processor(service: ServiceContext) -> None:
    await run_processor(service, ProcessorSpec("pairs", "scores", tasks="one"), lambda _: Pairs())


class Bystander(Pairs):
    """A processor that sees whatever comes on its side input."""

    def on_side_input(self, event: Event, record: Record, now_s: float) -> ProcessResult:
        return ProcessResult()


async def processor_beside(service: ServiceContext) -> None:
    """With the stuck topic at its side."""
    await run_processor(service, ProcessorSpec("pairs", "groups", ("scores",), tasks="one"), lambda _: Bystander())


async def follower(service: ServiceContext) -> None:
    await follow(service, ["scores"], on=lambda event, record: None)


@pytest.mark.parametrize("serve", [processor, follower])
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

    await write(log, scored("a", 0))
    monkeypatch.setattr(Reader, "__aenter__", stuck)
    with pytest.raises(ExceptionGroup) as raised:
        async with asyncio.timeout(60), service_of(log, tmp_path) as service:
            await serve(service)
    assert raised.group_contains(StreamsError, match=r"scores/\d ends at 1 and has been read no further than 0")


@pytest.mark.parametrize("serve", [work, processor, processor_beside])
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
            async with asyncio.timeout(60), service_of(log, tmp_path) as service:
                await serve(service)
        writing.cancel()
        await asyncio.wait([writing])
    assert raised.group_contains(StreamsError, match="scores/0 ends at 1 and has been read no further than 0")


class Endless(Pairs):
    """A processor that does not return, until the watchdog would have ended the process."""

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


async def test_a_processor_that_does_not_return_ends_its_process(
    log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = Endless()
    monkeypatch.setattr("streams.runtime.loop_watchdog.end_process", endless.end)
    monkeypatch.setattr("streams.stages.runner._SILENT_S", 0.6)
    async with Writer(log) as writer:
        ref = await writer.write(scored("a", 0))
    async with asyncio.timeout(90), service_of(log, tmp_path) as service:
        service.spawn(
            run_processor(service, ProcessorSpec("pairs", "scores", tasks="one"), lambda _: endless), "processor"
        )
        await until("it was noticed", endless.ended.is_set)
    assert endless.why == [f"pairs processes {place(ref)}: nothing else ran for 0.6 s"]


async def test_a_stage_that_has_nothing_to_do_has_no_lag(log: Log, tmp_path: Path, run: str) -> None:
    """Transaction markers at the end of the input take offsets, which the stages pass once they have drained it."""
    async with transactions(log, "before") as writer:
        for group in ("a", "b"):
            await writer.write([scored(group, 0), scored(group, 1)])

    def lags() -> list[int]:
        with Admin(log.settings.bootstrap) as admin:
            return [sum(admin.lag(f"{run}.{stage}", [f"{run}.scores"]).values()) for stage in ("pairs", "collect")]

    async with service_of(log, tmp_path) as service:
        processor = ProcessorSpec("pairs", "scores", (), None, "one")
        tasks = [service.spawn(run_processor(service, processor, lambda _: Pairs()), "processor")]
        tasks.append(service.spawn(run_worker(service, SPEC, Collector()), "worker"))
        async with asyncio.timeout(60):
            while await asyncio.to_thread(lags) != [0, 0]:
                await asyncio.sleep(0.05)
        service.stopping.set()
        await asyncio.gather(*tasks)
