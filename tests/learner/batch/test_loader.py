"""The loader yields each batch number once, in order, whoever else writes to the topic, and fails where one is lost."""

import asyncio
import gc
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.delivery.loops import Watch
from learner.batch.loader import BatchLoader, LoaderConfig
from learner.errors import LostBatchError
from learner.model.policy import ModelShape
from schemas import (
    DeadLetter,
    Ref,
    RolloutCompleted,
    Routes,
    Sampling,
)
from streams.blobs.store import BlobStore
from streams.broker import Broker
from streams.errors import ConfigurationError, StreamsError
from streams.log.admin import Admin, TopicPartition
from streams.log.clients import Writer
from streams.log.reader import Reader
from streams.record import Output
from streams.runtime.service_context import ServiceContext
from tests.builders import batch_planned, group_dropped, planned_sequence, rollout_completed, service_of
from tests.run_logs import everything, new_run, write

LONG = ModelShape(vocabulary=32, max_tokens=32_768, moe_layers=60, top_k=8, experts=128)
LIMIT_MS = 10.0
"""To read one body of 15.7 MB with its digest takes 15 ms of CPU, to check it 40; handing them over takes 2."""

SECOND_RANK = LoaderConfig(rank=1, world=2, shape=ModelShape(32, 64, 2, 2, 4), timeout_s=5.0)
FIRST_RANK = replace(SECOND_RANK, rank=0)


def plan(batch: int, token_budget: int = 1) -> Output:
    event = batch_planned(batch, ranks=(((),), ((),)), token_budget=token_budget)
    return Output("batches", event)


def dropped() -> Output:
    event = group_dropped("g", prompt_id="p", reason="stale")
    return Output("batches", event)


@pytest.fixture
async def service(log_broker: Broker, tmp_path: Path) -> AsyncIterator[ServiceContext]:
    log = await asyncio.to_thread(new_run, log_broker)
    async with asyncio.timeout(60), service_of(log, tmp_path, "learner") as service:
        yield service


async def test_a_number_comes_once_and_drops_are_skipped(service: ServiceContext) -> None:
    await write(service.log, plan(0), dropped(), plan(1, 10), plan(1, 20), plan(2))
    loader = BatchLoader(service, SECOND_RANK, offset=0, next_batch=0)
    service.spawn(loader.fill(), "batch loader")
    batches = [await loader.next() for _ in range(3)]
    assert [batch.plan.batch for batch in batches if batch] == [0, 1, 2]
    assert batches[1] is not None and batches[1].plan.token_budget == 10
    assert batches[1].micro_batches == ((),) and batches[1].rejected == ()


def long_rollout(blobs: BlobStore, index: int) -> RolloutCompleted:
    """32,768 tokens with 15.7 MB of routes by claim check."""
    first = np.random.default_rng(index).integers(0, 128, (LONG.max_tokens, LONG.moe_layers, 1), dtype=np.uint8)
    routes = (first + np.arange(LONG.top_k, dtype=np.uint8)) % np.uint8(LONG.experts)
    return rollout_completed(
        "p.0",
        index,
        samples=1,
        response=[7] * (LONG.max_tokens - 1),
        sampling=Sampling(max_tokens=LONG.max_tokens),
        routes=Routes(
            experts=LONG.experts,
            shape=routes.shape,
            dtype="u1",
            sentinel=255,
            blob=blobs.put(f"routes/p.0.{index}", routes.tobytes()),
        ),
    )


async def test_bodies_are_read_and_decoded_beside_the_loop(service: ServiceContext) -> None:
    bodies = 4
    events = await asyncio.gather(*(asyncio.to_thread(long_rollout, service.blobs, i) for i in range(bodies)))
    async with Writer(service.log) as writer:
        refs = [await writer.write(Output("rollouts", event, key="p.0")) for event in events]
    sequences = tuple(
        planned_sequence(event.rollout_id, ref, prompt_tokens=1, response_tokens=LONG.max_tokens - 1)
        for event, ref in zip(events, refs, strict=True)
    )
    planned = batch_planned(0, sequences=sequences, ranks=((tuple(range(bodies)),),), token_budget=LONG.max_tokens)
    await write(service.log, Output("batches", planned))
    loader = BatchLoader(service, LoaderConfig(rank=0, world=1, shape=LONG, timeout_s=20.0), offset=0, next_batch=0)
    watch = Watch()
    # Garbage of earlier tests must not be collected meanwhile; a service collects rarely.
    gc.collect()
    gc.disable()
    try:
        watching = asyncio.create_task(watch.run())
        service.spawn(loader.fill(), "batch loader")
        batch = await loader.next()
        watching.cancel()
    finally:
        gc.enable()
    assert batch is not None and batch.rejected == ()
    assert [rollout.routes is not None for rollout in batch.micro_batches[0]] == [True] * bodies
    assert watch.worst.cpu_ms < LIMIT_MS, watch.worst


async def test_it_resumes_at_the_checkpoints_position(service: ServiceContext) -> None:
    await write(service.log, plan(0), plan(1), plan(2))
    loader = BatchLoader(service, SECOND_RANK, offset=1, next_batch=2)
    service.spawn(loader.fill(), "batch loader")
    batch = await loader.next()
    assert batch is not None and batch.plan.batch == 2 and batch.record.offset == 2


async def dead_letter_sources(service: ServiceContext) -> list[Ref]:
    return [event.source for event in await everything(service.log, "dead-letters") if isinstance(event, DeadLetter)]


async def given(loader: BatchLoader, count: int) -> list[int]:
    """The numbers of the next batches; the loader's own error where it fails."""
    numbers: list[int] = []
    filling = asyncio.ensure_future(loader.fill())
    async with asyncio.timeout(60):
        while len(numbers) < count:
            getting = asyncio.ensure_future(loader.next())
            await asyncio.wait([getting, filling], return_when=asyncio.FIRST_COMPLETED)
            if filling.done():
                getting.cancel()
                filling.result()
            batch = getting.result()
            assert batch is not None
            numbers.append(batch.plan.batch)
    filling.cancel()
    await asyncio.wait([filling])
    return numbers


async def test_a_number_that_the_batcher_cannot_have_reached_is_skipped(service: ServiceContext) -> None:
    """Whoever wrote it, and however often: the run continues, and each record becomes one dead letter."""
    await write(service.log, plan(0), plan(7), plan(1), plan(7), plan(4000), plan(2), plan(3))
    assert await given(BatchLoader(service, FIRST_RANK, offset=0, next_batch=0), 4) == [0, 1, 2, 3]
    assert await dead_letter_sources(service) == [Ref("batches", 0, offset) for offset in (1, 3, 4)]


async def test_one_rank_writes_the_dead_letters(service: ServiceContext) -> None:
    await write(service.log, plan(7), plan(0))
    assert await given(BatchLoader(service, SECOND_RANK, offset=0, next_batch=0), 1) == [0]
    assert await dead_letter_sources(service) == []


async def test_a_batcher_that_continues_without_a_batch_ends_the_run(service: ServiceContext) -> None:
    """Two consecutive numbers are the batcher's: waiting for the one it left out would last indefinitely."""
    await write(service.log, plan(0), plan(2), dropped(), plan(3))
    loader = BatchLoader(service, SECOND_RANK, offset=0, next_batch=0)
    with pytest.raises(ConfigurationError, match=r"batch 3 at batches/0@3 follows batch 0 .*has lost batch 1"):
        await loader.fill()


async def test_a_batch_that_retention_deleted_ends_the_run(service: ServiceContext) -> None:
    await write(service.log, plan(0), plan(1), plan(2))
    with Admin(service.run_context.bootstrap) as admin:
        admin.delete_records({TopicPartition(service.log.full("batches"), 0): 2})
    loader = BatchLoader(service, SECOND_RANK, offset=1, next_batch=1)
    with pytest.raises(ConfigurationError, match=r"batch 2 at batches/0@2 .*retention has deleted.* lost batch 1"):
        await loader.fill()


async def test_a_reader_that_is_stuck_ends_the_service(
    service: ServiceContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.log.stall._CHECK_EVERY_S", 0.0)
    monkeypatch.setattr("streams.log.stall.STALLED_S", 0.5)
    entered = Reader.__aenter__

    async def stuck(self: Reader) -> Reader:
        reader = await entered(self)
        if ("batches", 0) in self._positions:
            self.pause("batches", [0])
        return reader

    await write(service.log, plan(0))
    monkeypatch.setattr(Reader, "__aenter__", stuck)
    with pytest.raises(StreamsError, match="batches/0 ends at 1 and has been read no further than 0"):
        async with asyncio.timeout(60):
            await BatchLoader(service, SECOND_RANK, offset=0, next_batch=0).fill()


async def test_a_log_that_ends_before_the_checkpoint_is_another_one(service: ServiceContext) -> None:
    await write(service.log, plan(0))
    with pytest.raises(LostBatchError, match="stands at offset 5 of batches and the log ends at 1"):
        await BatchLoader(service, SECOND_RANK, offset=5, next_batch=5).fill()


async def test_a_wait_is_named_and_ends_with_the_service(service: ServiceContext) -> None:
    loader = BatchLoader(service, SECOND_RANK, offset=0, next_batch=7)
    waiting = asyncio.create_task(loader.next())
    await asyncio.sleep(0)
    assert any(line.startswith("waits for batch 7 since") for line in service.waits(0.0))
    service.stopping.set()
    assert await waiting is None
    assert service.waits(0.0) == []
