"""Hostile records on every topic, against the real services: no crash, no hang, no growth, each in the dead letters.

The stage that consumes a topic writes the dead letter: the producer for `prompts`, rewards for `rollouts`, groups for
`scores`, batches for `groups`. The topics that no stage commits are the dispatcher's, but for weights that decode and
cannot be used: those are the producer's. What decodes as an event of its topic and breaks no rule is no dead letter: it
is believed, and what it belongs to ends as everything else does.
"""

import asyncio
from pathlib import Path

import pytest

from schemas import (
    MAX_EVENT_BYTES,
    Ref,
)
from streams.blobs.store import BlobStore
from streams.broker import Broker
from streams.log.clients import Log, Writer
from streams.record import Output
from streams.runtime.service_context import ServiceContext
from tests.builders import batch_planned, context_of, planned_sequence
from tests.chaos.honest import EXPERTS, LAYERS, TOP_K
from tests.chaos.hostile import Hostile, hostile
from tests.chaos.hostile_run import MISSING, Expected, Watcher, bombard, check, honest_records, on_topic, write_hostile
from tests.chaos.hostile_services import PARTITIONS, log_on, serving
from tests.chaos.mutations import CERTAIN


async def test_five_hundred_hostile_records(embedded_broker: Broker, tmp_path: Path) -> None:
    log = await asyncio.to_thread(log_on, embedded_broker)
    figures = await bombard(log, tmp_path, seed=1, count=500, deadline_s=90)
    assert figures["mib_grown"] < 100
    assert figures["refused"] > 400


@pytest.mark.chaos
@pytest.mark.kafka
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", [10])
async def test_ten_thousand_hostile_records(kafka_broker: Broker, tmp_path: Path, seed: int) -> None:
    log = await asyncio.to_thread(log_on, kafka_broker)
    figures = await bombard(log, tmp_path, seed, count=10_000, deadline_s=400)
    print(dict(figures))
    assert figures["mib_grown"] < 200
    assert figures["refused"] > 8_000


@pytest.mark.parametrize(
    ("kind", "limit"),
    [
        ("embedded", 1 << 20),
        pytest.param("kafka", MAX_EVENT_BYTES, marks=[pytest.mark.chaos, pytest.mark.kafka]),
    ],
)
async def test_a_record_as_large_as_a_topic_takes_fits_into_its_dead_letter(
    kind: str, limit: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    broker: Broker = request.getfixturevalue(f"{kind}_broker")
    log = await asyncio.to_thread(log_on, broker)
    expected, watcher = Expected(), Watcher(log)
    whole = Hostile("scores", 0, b"g", b"\xc1" + bytes(limit - 256), (), "noise", "h0.0", 1)
    watching = asyncio.create_task(watcher.run())
    async with serving(log, tmp_path):
        await write_hostile(log, [whole], expected)
        await watcher.until_all(expected, 60)
    watching.cancel()
    check(expected, watcher)


async def test_the_learner_trains_on_none_of_them(embedded_broker: Broker, tmp_path: Path) -> None:
    """Rollouts that no stage before it looks into (routes, blobs) and those that are none, planned all the same."""
    from learner.batch.loader import BatchLoader, LoaderConfig
    from learner.model.policy import ModelShape

    log = await asyncio.to_thread(log_on, embedded_broker)
    records = [r for r in hostile(5, 1500, PARTITIONS, MISSING) if r.topic == "rollouts"]
    expected, watcher = Expected(), Watcher(log)
    junk = [r for r in hostile(6, 500, PARTITIONS, MISSING) if r.topic == "batches" and r.kind in CERTAIN]
    await write_hostile(log, [*junk, *records], expected)
    where = {ref: f"{r.group}.{r.index}" for ref, r in zip(on_topic(expected, "rollouts"), records, strict=True)}
    plans = await write_plans(log, where | {ref: name for ref, name in honest_records(expected, records)})
    context = context_of(log, tmp_path, drain_s=5.0)
    trained: set[str] = set()
    rejected: dict[Ref, str] = {}
    watching = asyncio.create_task(watcher.run())
    async with asyncio.timeout(120), asyncio.TaskGroup() as tasks:
        service = ServiceContext("learner", context, log, BlobStore(context.blob_uri), tasks)
        loader = BatchLoader(
            service, LoaderConfig(0, 1, ModelShape(64, 256, LAYERS, TOP_K, EXPERTS), 10.0), offset=0, next_batch=0
        )
        service.spawn(loader.fill(), "batch loader")
        for _ in range(plans):
            batch = await loader.next()
            assert batch is not None
            trained |= {sequence.rollout_id for micro in batch.micro_batches for sequence in micro}
            rejected |= {Ref(*refusal.rollout): refusal.reason for refusal in batch.rejected}
        service.cancel_spawned()
    expected.refused = set(rejected)
    await watcher.until_all(expected, 90)
    watching.cancel()
    for ref, found in watcher.dead_letters.items():
        assert found == [("learner", expected.written[ref][0])], f"{ref} has the dead letters {found}"
    kinds = {ref: kind for ref, (_, kind) in expected.written.items() if ref.topic == "rollouts"}
    assert {ref for ref, kind in kinds.items() if kind in CERTAIN or kind == "bad_routes"} <= rejected.keys()
    assert not rejected.keys() & set(expected.honest)
    assert len(trained) == len(kinds) + len(expected.honest) - len(rejected)


async def write_plans(log: Log, rollouts: dict[Ref, str], size: int = 64) -> int:
    """Plan every one of `rollouts`, by its id, in batches of `size`; how many batches that were."""
    async with Writer(log) as writer:
        chunks = [list(rollouts.items())[first : first + size] for first in range(0, len(rollouts), size)]
        for number, chunk in enumerate(chunks):
            sequences = tuple(planned_sequence(name, ref) for ref, name in chunk)
            plan = batch_planned(
                number, sequences=sequences, ranks=((tuple(range(len(chunk))),),), token_budget=4096, time_s=2.0
            )
            await writer.write(Output("batches", plan))
    return len(chunks)
