"""The learner's side: takes batches in order, fetches and decodes their rollouts, says the step is done."""

import time
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.delivery.shape import Arrival, Shape
from schemas import BatchPlanned, Ref, RolloutCompleted, StepCompleted, decode
from streams.fetch import RecordFetcher
from streams.log import Reader, Writer
from streams.record import Output, Record
from streams.scope import Scope


async def main(scope: Scope, shape: Shape) -> None:
    """The service: ends by itself when everything is there, and writes `arrival.json`."""
    log, received, steps = scope.log, 0, 0
    ages_s: list[float] = []
    first_s = float("inf")
    async with (
        Reader(log, {("batches", 0): 0}) as reader,
        RecordFetcher(log, "rollouts") as fetcher,
        Writer(log) as out,
    ):
        scope.ready()
        while received < shape.rollouts and not scope.stopping.is_set():
            for record in await reader.poll(0.2):
                plan = decode(record.value)
                if not isinstance(plan, BatchPlanned):
                    continue
                rollouts = _rollouts(await fetcher.fetch([s.rollout for s in plan.sequences], 30.0))
                now_s = time.time()
                ages_s += [now_s - rollout.time_s for rollout in rollouts]
                first_s = min(first_s, *(rollout.time_s for rollout in rollouts))
                received += len(rollouts)
                await out.write(Output("steps", _step(steps, plan, record.ref, len(rollouts))))
                steps += 1
    arrival = Arrival(
        received, first_s, time.time(), 1e3 * float(np.quantile(ages_s, 0.5)), 1e3 * float(np.quantile(ages_s, 0.99))
    )
    (Path(scope.context.directory) / "arrival.json").write_bytes(msgspec.json.encode(arrival))


def _rollouts(records: list[Record]) -> list[RolloutCompleted]:
    """Decoded, with their arrays as the learner takes them: views, no copies."""
    found = []
    for record in records:
        event = decode(record.value)
        assert isinstance(event, RolloutCompleted), record.ref
        event.response_ids.numpy()
        event.logprobs.numpy()
        found.append(event)
    return found


def _step(step: int, plan: BatchPlanned, ref: Ref, sequences: int) -> StepCompleted:
    return StepCompleted(
        step=step, batch=plan.batch, batch_ref=ref, version=step + 1, metrics={}, time_s=time.time(),
        sequences=sequences,
    )  # fmt: skip
