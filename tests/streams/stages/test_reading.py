"""Reading history beside the stages: tails, scans, references, and what was never committed."""

import asyncio
import time

import pytest

from schemas import (
    Event,
    GroupDropped,
    Ref,
    RolloutScored,
    StepCompleted,
)
from streams.errors import MissingRecordError, StreamsError
from streams.log.clients import Log, Writer
from streams.log.fetch import RecordFetcher
from streams.log.history import read_topic
from streams.log.reader import Reader
from streams.log.tail import Tail, read_tail
from streams.record import Output, Record
from tests.run_logs import everything, transactions, write
from tests.streams.stages.stage_run import PARTITIONS, scored, step


async def test_nothing_of_an_aborted_transaction_is_seen(log: Log) -> None:
    async with transactions(log, "writer") as writer:
        await writer.write([scored("a", 0)])
        async with transactions(log, "writer") as successor:
            with pytest.raises(Exception, match=r"has taken over|failed"):
                await writer.write([scored("a", 1)])
            await successor.write([scored("a", 2)])
    seen = [event.rollout_id for event in await everything(log, "scores") if isinstance(event, RolloutScored)]
    assert seen == ["a.0", "a.2"]


async def test_the_tail_is_read_past_transaction_markers(log: Log) -> None:
    async with transactions(log, "steps") as writer:
        for number in range(5):
            await writer.write([step(number)])
    found = await read_tail(log, Tail("steps", newest=2), None, time.time())
    steps = [event.step for event, _ in found if isinstance(event, StepCompleted)]
    assert steps[-2:] == [3, 4]
    assert len(steps) <= 4


async def test_a_tail_is_read_from_further_back_until_it_holds_what_is_wanted(log: Log) -> None:
    """A batch number must not begin at 0 again because much else was written behind the last batch."""
    async with transactions(log, "steps") as writer:
        await writer.write([step(7)])
        await writer.write([Output("steps", scored("other", index).event) for index in range(40)])
    assert not await read_tail(log, Tail("steps", newest=0), None, time.time())

    def holds_step(event: Event) -> bool:
        return isinstance(event, StepCompleted)

    def holds_drop(event: Event) -> bool:
        return isinstance(event, GroupDropped)

    for holding in (holds_step, holds_drop):
        tail = Tail("steps", newest=2, holding=holding)
        found = await read_tail(log, tail, None, time.time())
        assert [type(event) for event, _ in found].count(StepCompleted) == 1


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


async def test_history_of_a_plain_writer_comes_with_its_headers(log: Log) -> None:
    await write(log, *(scored(f"g{index}", index) for index in range(20)))
    records = await asyncio.to_thread(lambda: list(read_topic(log.settings.bootstrap, log.settings.run, "scores")))
    assert len(records) == 20
    assert {record.headers["run"] for record in records} == {log.settings.run.encode()}
    late = await asyncio.to_thread(
        lambda: list(read_topic(log.settings.bootstrap, log.settings.run, "scores", since_s=time.time() + 3600))
    )
    assert late == []


async def test_a_reader_position_passes_transaction_markers(log: Log) -> None:
    async with transactions(log, "w") as writer:
        await writer.write([step(1)])
    async with Reader(log, {("steps", 0): None}) as reader:
        ends = await reader.ends()
        assert len(await reader.poll(30.0)) == 1
        async with asyncio.timeout(30):
            while await reader.position("steps", 0) < ends[("steps", 0)]:
                await reader.poll(0.2)


async def test_history_is_read_up_to_now_and_without_what_was_not_committed(log: Log) -> None:
    async with transactions(log, "w") as writer:
        written = [await writer.write([scored(f"g{index}", index)]) for index in range(20)]

    def scanned(**window: float) -> list[Record]:
        return list(read_topic(log.settings.bootstrap, log.settings.run, "scores", **window))

    records = await asyncio.to_thread(scanned)
    assert sorted(record.ref for record in records) == sorted(ref for refs in written for ref in refs)
    assert await asyncio.to_thread(lambda: scanned(since_s=time.time() + 3600)) == []
    assert await asyncio.to_thread(lambda: scanned(until_s=time.time() - 3600)) == []
    with pytest.raises(StreamsError, match="weights"):
        await asyncio.to_thread(lambda: list(read_topic(log.settings.bootstrap, f"{log.settings.run}x", "weights")))


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
