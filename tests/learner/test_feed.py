"""The feed gives each batch number once and in order, and says so where the log has lost one."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from learner.errors import LearnerError
from learner.feed import Feed, Reading
from learner.policy import ModelShape
from schemas import TOPICS, BatchPlanned, GroupDropped
from streams.admin import TopicSpec, create_topics
from streams.blobs import BlobStore
from streams.broker import Broker
from streams.context import RunContext
from streams.log import Log, LogSettings, Writer
from streams.record import Output
from streams.scope import Scope

READING = Reading(rank=1, world=2, shape=ModelShape(32, 64, 2, 2, 4), timeout_s=5.0)


def plan(batch: int, token_budget: int = 1) -> Output:
    event = BatchPlanned(
        batch=batch, groups=(), sequences=(), ranks=(((),), ((),)), token_budget=token_budget, time_s=0.0
    )
    return Output("batches", event)


def dropped() -> Output:
    event = GroupDropped(group_id="g", prompt_id="p", task="t", reason="stale", members=(), time_s=0.0)
    return Output("batches", event)


@pytest.fixture
async def scope(log_broker: Broker, tmp_path: Path) -> AsyncIterator[Scope]:
    context = RunContext(f"f{uuid.uuid4().hex[:8]}", tmp_path, log_broker.bootstrap, 1, (tmp_path / "blobs").as_uri())
    await asyncio.to_thread(
        create_topics, context.bootstrap, [TopicSpec(topic.on(context.run), 1) for topic in TOPICS.values()]
    )
    log = Log(LogSettings(context.bootstrap, context.run, 1), "test")
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        scope = Scope("learner", context, log, BlobStore(context.blob_uri), tasks)
        yield scope
        scope.cancel_spawned()


async def write(scope: Scope, *outputs: Output) -> None:
    async with Writer(scope.log) as writer:
        for output in outputs:
            await writer.write(output)


async def test_a_number_comes_once_and_drops_are_passed_over(scope: Scope) -> None:
    await write(scope, plan(0), dropped(), plan(1, 10), plan(1, 20), plan(2))
    feed = Feed(scope, READING, offset=0, next_batch=0)
    scope.spawn(feed.fill(), "feed")
    batches = [await feed.next() for _ in range(3)]
    assert [batch.plan.batch for batch in batches if batch] == [0, 1, 2]
    assert batches[1] is not None and batches[1].plan.token_budget == 10
    assert batches[1].micro_batches == ((),) and batches[1].rejected == ()


async def test_it_goes_on_where_the_checkpoint_says(scope: Scope) -> None:
    await write(scope, plan(0), plan(1), plan(2))
    feed = Feed(scope, READING, offset=1, next_batch=2)
    scope.spawn(feed.fill(), "feed")
    batch = await feed.next()
    assert batch is not None and batch.plan.batch == 2 and batch.record.offset == 2


async def test_a_lost_batch_ends_the_service(scope: Scope) -> None:
    await write(scope, plan(0), plan(2))
    feed = Feed(scope, READING, offset=0, next_batch=0)
    with pytest.raises(LearnerError, match=r"batch 2 at batches/0@1 follows batch 0: the log has lost batch 1"):
        await feed.fill()


async def test_a_log_that_ends_before_the_checkpoint_is_another_one(scope: Scope) -> None:
    await write(scope, plan(0))
    with pytest.raises(LearnerError, match="stands at offset 5 of batches and the log ends at 1"):
        await Feed(scope, READING, offset=5, next_batch=5).fill()


async def test_a_wait_is_named_and_ends_with_the_service(scope: Scope) -> None:
    feed = Feed(scope, READING, offset=0, next_batch=7)
    waiting = asyncio.create_task(feed.next())
    await asyncio.sleep(0)
    assert any(line.startswith("waits for batch 7 since") for line in scope.waits(0.0))
    scope.stopping.set()
    assert await waiting is None
    assert scope.waits(0.0) == []
