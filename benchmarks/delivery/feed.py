"""The learner's side: takes batches in order, fetches and decodes their rollouts, reports the step as done."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.delivery.played import EXPERTS
from benchmarks.delivery.shape import Arrival, Shape
from schemas import BatchPlanned, PlannedSequence, Ref, RolloutCompleted, StepCompleted, decode
from streams.log.clients import Writer
from streams.log.fetch import RecordFetcher
from streams.log.reader import Reader
from streams.record import Output, Record
from streams.runtime.service_context import ServiceContext

Take = Callable[[Sequence[PlannedSequence], list[Record]], Awaitable[list[float]]]
"""Decodes records as far as the learner's hands; the unix times at which they were finished."""

_READ_AT_ONCE = 2


async def main(service: ServiceContext, shape: Shape) -> None:
    """The service: ends by itself when everything is there, and writes `arrival.json`."""
    log, received, steps, record_bytes = service.log, 0, 0, 0
    ages_s: list[float] = []
    first_s = float("inf")
    take = _learner(service, shape) if shape.tokens else _views
    async with (
        Reader(log, {("batches", 0): 0}) as reader,
        RecordFetcher(log, "rollouts") as fetcher,
        Writer(log) as out,
    ):
        service.ready()
        while received < shape.rollouts and not service.stopping.is_set():
            for record in await reader.poll(0.2):
                plan = decode(record.value)
                if not isinstance(plan, BatchPlanned):
                    continue
                records = await fetcher.fetch([s.rollout for s in plan.sequences], 30.0)
                finished_s = await take(plan.sequences, records)
                now_s = time.time()
                ages_s += [now_s - then_s for then_s in finished_s]
                first_s = min(first_s, *finished_s)
                received += len(records)
                record_bytes += sum(len(record.value) for record in records)
                await out.write(Output("steps", _step(steps, plan, record.ref, len(records))))
                steps += 1
    p50_s, p99_s = np.quantile(ages_s, (0.5, 0.99))
    arrival = Arrival(
        received, first_s, time.time(), 1e3 * float(p50_s), 1e3 * float(p99_s), record_bytes / received,
        received * shape.tokens * shape.routes[0] * shape.routes[1],
    )  # fmt: skip
    (Path(service.run_context.directory) / "arrival.json").write_bytes(msgspec.json.encode(arrival))


async def _views(sequences: Sequence[PlannedSequence], records: list[Record]) -> list[float]:
    """With their arrays as the learner takes them: views, no copies."""
    found = []
    for record in records:
        event = decode(record.value)
        assert isinstance(event, RolloutCompleted), record.ref
        event.response_ids.numpy()
        event.logprobs.numpy()
        found.append(event.time_s)
    return found


def _learner(service: ServiceContext, shape: Shape) -> Take:
    """What the learner does with a record: the body read and verified, the routes checked, tensors made."""
    from learner.batch.decode import to_rollout
    from learner.model.policy import ModelShape

    model = ModelShape(1 << 16, shape.tokens, *shape.routes, EXPERTS)
    slots = asyncio.Semaphore(_READ_AT_ONCE)

    async def one(sequence: PlannedSequence, record: Record) -> float:
        async with slots:
            rollout = await asyncio.to_thread(to_rollout, sequence, record, model, service.blobs, 0)
        assert rollout.routes is not None and rollout.routes.shape == (shape.tokens, *shape.routes)
        event = await asyncio.to_thread(decode, record.value)
        assert isinstance(event, RolloutCompleted)
        return event.time_s

    async def take(sequences: Sequence[PlannedSequence], records: list[Record]) -> list[float]:
        return list(await asyncio.gather(*map(one, sequences, records)))

    return take


def _step(step: int, plan: BatchPlanned, ref: Ref, sequences: int) -> StepCompleted:
    return StepCompleted(
        step=step, batch=plan.batch, batch_ref=ref, version=step + 1, metrics={}, time_s=time.time(),
        sequences=sequences,
    )  # fmt: skip
