"""Hostile records on every topic, against the real services: no crash, no hang, no growth, each in the dead letters.

The stage that consumes a topic writes the letter: the producer for `prompts`, rewards for `rollouts`, groups for
`scores`, batches for `groups`. The topics that no stage commits are the dispatcher's, but for weights that decode and
cannot be used: those are the producer's. What decodes as an event of its topic and breaks no rule is no dead letter: it
is believed, and what it belongs to ends as everything else does.
"""

import asyncio
import gc
import hashlib
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil
import pytest

from analysis.history.read import audit_of
from analysis.history.run_log import RunLog
from consumers.batches import service as batches
from consumers.batches.settings import BatchSettings
from consumers.groups import service as groups
from consumers.groups.settings import GroupSettings
from consumers.rewards import service as rewards
from consumers.rewards.settings import RewardSettings
from deploy.cli.commands.demo import DEMO
from deploy.config.run import load
from deploy.local.session import topic_specs
from producers.dispatcher import service as dispatcher
from producers.dispatcher.settings import DispatcherSettings
from producers.dispatcher.sources import JsonlSource
from producers.rollouts.engine.supervised import RestartingEngine
from producers.rollouts.settings import ProducerSettings
from producers.rollouts.weights.subscriber import WeightSubscriber
from producers.rollouts.worker import RolloutWorker
from schemas import (
    MAX_EVENT_BYTES,
    BatchPlanned,
    BlobRef,
    DeadLetter,
    GroupDropped,
    GroupEvaluated,
    GroupReady,
    GroupRequested,
    PlannedSequence,
    Ref,
    RolloutDisposed,
    RolloutScored,
    UndecodableError,
    decode,
    encode,
    partition_of,
)
from streams.blobs.store import BlobStore
from streams.broker import Broker
from streams.context import RunContext
from streams.errors import Poison
from streams.log.admin import Admin
from streams.log.clients import Log, LogSettings, Writer
from streams.log.dead_letters import event_of
from streams.log.reader import Reader
from streams.record import Output, Record
from streams.runtime.service_context import ServiceContext
from streams.stages.follower import follow
from streams.stages.worker import WorkerSpec, run_worker
from tests.chaos.hostile import (
    CERTAIN,
    EXPERTS,
    LAYERS,
    SAMPLES,
    TOP_K,
    TOPICS_OF_GROUPS,
    Hostile,
    hostile,
    rollout,
    score,
)

MODEL: Final = Path(__file__).parents[2] / "models" / "tiny-moe"
PARTITIONS: Final = 2
OWNER: Final = {"prompts": "producer", "rollouts": "rewards", "scores": "groups", "groups": "batches"}
MISSING: Final = BlobRef(uri="file:///nonexistent/weights", size=8, digest="0" * 64)
CHUNK: Final = 250


def _log_on(broker: Broker) -> Log:
    """Topics of a run of its own, as the command makes them."""
    run = f"hostile-{uuid.uuid4().hex[:8]}"
    config = load(DEMO, overrides=[f'run.id="{run}"', f"run.partitions={PARTITIONS}"])
    with Admin(broker.bootstrap) as admin:
        admin.create_topics(topic_specs(config))
    return Log(LogSettings(broker.bootstrap, run, PARTITIONS), "test")


@asynccontextmanager
async def serving(log: Log, directory: Path) -> AsyncIterator[None]:
    """All light services and the producer's stage and weight subscriber, whose engine is never started."""
    context = RunContext(
        log.settings.run, directory, log.settings.bootstrap, PARTITIONS, (directory / "blobs").as_uri(), drain_s=5.0
    )
    prompts = directory / "prompts.jsonl"
    prompts.write_text('{"prompt": "3+1=", "verifier": "exact_match", "reference": "4"}\n')
    # Requests of the dispatcher itself are past their deadline at once as well.
    asking = DispatcherSettings(
        source=JsonlSource(path=str(prompts)), groups_per_batch=2, group_timeout_s=1e-6, outcome_grace_s=3600.0
    )
    names = ("rewards", "groups", "batches", "dispatcher", "producer")
    async with asyncio.TaskGroup() as tasks:
        scopes = {name: ServiceContext(name, context, log, BlobStore(context.blob_uri), tasks) for name in names}
        running = [
            tasks.create_task(rewards.main(scopes["rewards"], RewardSettings(model=str(MODEL)))),
            tasks.create_task(groups.main(scopes["groups"], GroupSettings(settle_s=0.5, longest_s=2.0))),
            tasks.create_task(batches.main(scopes["batches"], BatchSettings(groups_per_batch=2))),
            tasks.create_task(dispatcher.main(scopes["dispatcher"], asking)),
            tasks.create_task(producing(scopes["producer"])),
        ]
        yield
        for service in scopes.values():
            service.stopping.set()
        await asyncio.wait(running, timeout=30)
        for service in scopes.values():
            service.cancel_spawned()


async def producing(service: ServiceContext) -> None:
    """The producer without its engine: nothing here is allowed to reach one."""
    settings = ProducerSettings(model=str(MODEL))
    engine = RestartingEngine(settings.engine_settings(0))
    async with Writer(service.log) as writer:
        cache = service.run_context.directory / "cache"
        weights = WeightSubscriber(engine, service.blobs, writer, "producer-0", cache, lambda: 0)
        tasks = [
            service.spawn(follow(service, ["weights"], on=weights.on_event), "producer follows weights"),
            service.spawn(weights.run(), "producer applies weights"),
        ]
        try:
            worker = RolloutWorker(service, settings, engine, "producer-0")
            await run_worker(service, WorkerSpec("producer", "prompts", 64, (GroupRequested,)), worker)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


@dataclass
class Expected:
    """What was written, by where it is."""

    written: dict[Ref, tuple[bytes, str]] = field(default_factory=dict)
    refused: set[Ref] = field(default_factory=set)
    groups: set[str] = field(default_factory=set)
    honest: list[Ref] = field(default_factory=list)

    def add(self, record: Hostile, ref: Ref) -> None:
        """A record that stands at `ref` now."""
        self.written[ref] = (_digest(record.value), record.kind)
        if not _is_event(record, ref):
            self.refused.add(ref)
        elif record.kind in CERTAIN:
            raise AssertionError(f"{record.kind} on {record.topic} is an event after all: {record.value[:200]!r}")
        elif record.kind == "bad_blob":
            self.refused.add(ref)
        elif record.topic == "prompts":
            # A request that is believed: nothing comes of it, and its group ends all the same.
            request = decode(record.value)
            assert isinstance(request, GroupRequested)
            self.groups.add(request.group_id)


class Watcher:
    """Reads dead letters, scores and the ends of groups as they come; keeps digests and ids alone."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.letters: dict[Ref, list[tuple[str, bytes]]] = {}
        self.accepted: dict[Ref, tuple[str, Ref]] = {}
        self.ended: set[str] = set()

    async def run(self) -> None:
        """For ever."""
        topics = ("dead-letters", "scores", "groups")
        positions: dict[tuple[str, int], int | None] = {(t, p): None for t in topics for p in self._log.partitions(t)}
        async with Reader(self._log, positions) as reader:
            while True:
                for record in await reader.poll(0.2, max_records=500):
                    self._take(record)

    def _take(self, record: Record) -> None:
        try:
            event = event_of(record)
        except (UndecodableError, Poison):
            return
        match event:
            case DeadLetter():
                self.letters.setdefault(Ref(*event.source), []).append((event.stage, _digest(event.data)))
            case RolloutScored():
                self.accepted[record.ref] = (event.group_id, event.rollout)
            case GroupReady() | GroupDropped() | GroupEvaluated() | RolloutDisposed():
                self.ended.add(event.group_id)
            case _:
                pass

    def missing(self, expected: Expected) -> list[str]:
        """What has not come yet: letters, and ends of groups that a score opened."""
        letters = [f"letter of {ref}" for ref in expected.refused - self.letters.keys()]
        opened = {group for ref, (group, _) in self.accepted.items() if ref not in self.letters}
        return letters + [f"end of group {group}" for group in (opened | expected.groups) - self.ended]

    async def until_all(self, expected: Expected, deadline_s: float) -> None:
        """Wait for everything. TimeoutError names what is missing."""
        try:
            async with asyncio.timeout(deadline_s):
                while self.missing(expected):
                    await asyncio.sleep(0.1)
        except TimeoutError:
            missing = self.missing(expected)
            raise TimeoutError(f"{len(missing)} things did not come, such as {missing[:5]}") from None


async def write_hostile(log: Log, records: Iterable[Hostile], expected: Expected) -> None:
    """Write `records`, and honest members into the groups of those on `rollouts` and `scores`."""
    producer = log.producer()
    await producer.start()
    try:
        sending: list[tuple[Hostile, asyncio.Future[object]]] = []
        for record in records:
            for each in (record, *_company(record)):
                future = await producer.send(
                    log.full(each.topic), each.value, each.key, each.partition, headers=list(each.headers)
                )
                sending.append((each, future))
            if len(sending) >= CHUNK:
                await _settle(sending, expected)
        await _settle(sending, expected)
    finally:
        await producer.stop()


async def _settle(sending: "list[tuple[Hostile, asyncio.Future[object]]]", expected: Expected) -> None:
    for record, future in sending:
        sent = await asyncio.wait_for(future, 60)
        ref = Ref(record.topic, sent.partition, sent.offset)  # type: ignore[attr-defined]
        if record.kind != "honest":
            expected.add(record, ref)
        elif record.topic == "rollouts":
            expected.honest.append(ref)
    sending.clear()


def _company(record: Hostile) -> list[Hostile]:
    """The honest half of the group of a hostile rollout or score, once a group."""
    if record.topic not in TOPICS_OF_GROUPS or record.index != 0:
        return []
    make = rollout if record.topic == "rollouts" else score
    return [
        Hostile(
            record.topic, record.partition, record.group.encode(), encode(make(record.group, k)), (), "honest",
            record.group, k,
        )
        for k in range(SAMPLES // 2, SAMPLES)
    ]  # fmt: skip


def _is_event(record: Hostile, ref: Ref) -> bool:
    try:
        event_of(Record(*ref, key=None, value=record.value, headers={}, time_s=0.0))
    except (UndecodableError, Poison):
        return False
    return True


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def check(expected: Expected, watcher: Watcher) -> None:
    """Each refused record is in the dead letters with its exact bytes, exactly once, by the owner of its topic."""
    for ref, found in watcher.letters.items():
        if ref not in expected.written:
            continue
        digest, kind = expected.written[ref]
        owner = OWNER.get(ref.topic, "dispatcher")
        if (ref not in expected.refused and ref.topic == "weights") or kind == "bad_blob":
            owner = "producer"
        assert found == [(owner, digest)], f"{kind} at {ref} has the letters {[stage for stage, _ in found]}"
    assert expected.refused <= watcher.letters.keys()


async def bombard(log: Log, directory: Path, seed: int, count: int, deadline_s: float) -> Counter[str]:
    """The whole property, and a restart of every service in the end; what was written and found, for the report."""
    expected, watcher, figures = Expected(), Watcher(log), Counter[str]()
    records = hostile(seed, count, PARTITIONS, MISSING)
    watching = asyncio.create_task(watcher.run())
    began = time.monotonic()
    try:
        async with serving(log, directory):
            await write_hostile(log, (next(records) for _ in range(count // 2)), expected)
            await watcher.until_all(expected, deadline_s)
            half = _resident_mib()
            await write_hostile(log, records, expected)
            await watcher.until_all(expected, deadline_s)
            figures["mib_grown"] = round(_resident_mib() - half)
        check(expected, watcher)
        figures["seconds"] = round(time.monotonic() - began)
        # A second life reads everything again that is not committed, and writes nothing twice.
        async with serving(log, directory):
            await write_hostile(log, hostile(seed + 1, 40, PARTITIONS, MISSING), expected)
            await probe(log, expected)
            await watcher.until_all(expected, deadline_s)
        once_more = Expected({r: w for r, w in expected.written.items() if r.topic != "weights"})
        once_more.refused = {ref for ref in expected.refused if ref.topic != "weights"}
        check(once_more, watcher)
    finally:
        watching.cancel()
    figures["written"], figures["refused"] = len(expected.written), len(expected.refused)
    figures["letters"], figures["groups_ended"] = len(watcher.letters), len(watcher.ended)
    audit = await asyncio.to_thread(audit_of, RunLog(log.settings.bootstrap, log.settings.run))
    lost = {finding.ref for finding in audit.findings} & set(expected.honest)
    assert not lost, f"honest rollouts {sorted(lost)[:5]} are not accounted for"
    assert audit.trained_twice == 0
    figures["audit_produced"], figures["audit_dead_letters"] = audit.produced, audit.dispositions["dead_letter"]
    return figures


async def probe(log: Log, expected: Expected) -> None:
    """An honest group of rollouts still goes all the way."""
    group = f"probe{uuid.uuid4().hex[:6]}.0"
    partition = partition_of(group, PARTITIONS)
    records = [
        Hostile("rollouts", partition, group.encode(), encode(rollout(group, k)), (), "honest", group, k)
        for k in range(SAMPLES)
    ]
    expected.groups.add(group)
    producer = log.producer()
    await producer.start()
    try:
        for record in records:
            sent = await producer.send_and_wait(log.full("rollouts"), record.value, record.key, partition)
            expected.honest.append(Ref("rollouts", sent.partition, sent.offset))
    finally:
        await producer.stop()


def _resident_mib() -> float:
    gc.collect()
    resident: int = psutil.Process().memory_info().rss
    return resident / 2**20


async def test_five_hundred_hostile_records(embedded_broker: Broker, tmp_path: Path) -> None:
    log = await asyncio.to_thread(_log_on, embedded_broker)
    figures = await bombard(log, tmp_path, seed=1, count=500, deadline_s=90)
    assert figures["mib_grown"] < 100
    assert figures["refused"] > 400


@pytest.mark.chaos
@pytest.mark.kafka
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", [10])
async def test_ten_thousand_hostile_records(kafka_broker: Broker, tmp_path: Path, seed: int) -> None:
    log = await asyncio.to_thread(_log_on, kafka_broker)
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
async def test_a_record_as_large_as_a_topic_takes_fits_into_its_letter(
    kind: str, limit: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    broker: Broker = request.getfixturevalue(f"{kind}_broker")
    log = await asyncio.to_thread(_log_on, broker)
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

    log = await asyncio.to_thread(_log_on, embedded_broker)
    records = [r for r in hostile(5, 1500, PARTITIONS, MISSING) if r.topic == "rollouts"]
    expected, watcher = Expected(), Watcher(log)
    junk = [r for r in hostile(6, 500, PARTITIONS, MISSING) if r.topic == "batches" and r.kind in CERTAIN]
    await write_hostile(log, [*junk, *records], expected)
    where = {ref: f"{r.group}.{r.index}" for ref, r in zip(_on(expected, "rollouts"), records, strict=True)}
    plans = await write_plans(log, where | {ref: name for ref, name in _honest(expected, records)})
    context = RunContext(
        log.settings.run, tmp_path, log.settings.bootstrap, PARTITIONS, (tmp_path / "blobs").as_uri(), drain_s=5.0
    )
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
    for ref, found in watcher.letters.items():
        assert found == [("learner", expected.written[ref][0])], f"{ref} has the letters {found}"
    kinds = {ref: kind for ref, (_, kind) in expected.written.items() if ref.topic == "rollouts"}
    assert {ref for ref, kind in kinds.items() if kind in CERTAIN or kind == "bad_routes"} <= rejected.keys()
    assert not rejected.keys() & set(expected.honest)
    assert len(trained) == len(kinds) + len(expected.honest) - len(rejected)


def _on(expected: Expected, topic: str) -> list[Ref]:
    return [ref for ref in expected.written if ref.topic == topic]


def _honest(expected: Expected, records: list[Hostile]) -> Iterator[tuple[Ref, str]]:
    names = [f"{each.group}.{each.index}" for record in records for each in _company(record)]
    return zip(expected.honest, names, strict=True)


async def write_plans(log: Log, rollouts: dict[Ref, str], size: int = 64) -> int:
    """Plan every one of `rollouts`, by its id, in batches of `size`; how many batches that were."""
    async with Writer(log) as writer:
        chunks = [list(rollouts.items())[first : first + size] for first in range(0, len(rollouts), size)]
        for number, chunk in enumerate(chunks):
            sequences = tuple(
                PlannedSequence(
                    rollout_id=name, rollout=ref, advantage=1.0, reward=1.0, prompt_tokens=4, response_tokens=2,
                    oldest_version=0,
                )
                for ref, name in chunk
            )  # fmt: skip
            plan = BatchPlanned(
                batch=number, groups=(), sequences=sequences, ranks=((tuple(range(len(chunk))),),), token_budget=4096,
                time_s=2.0,
            )  # fmt: skip
            await writer.write(Output("batches", plan))
    return len(chunks)
