"""Three brokers on loopback, replication 3, min ISR 2: kill -9 of any one loses nothing and stops progress for seconds.

A writer, an exactly-once stage and a reader run through the death and return of each broker, leaders first. What is
counted is what a user relies on: every acknowledged record is there, and each has one outcome.
"""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest

from schemas import Event, Ref, RolloutDisposed, RolloutScored, decode
from streams.broker import BrokerSettings
from streams.broker.jars import kafka_obstacle
from streams.broker.kafka import KafkaBroker, random_cluster_id, server_properties, write_properties
from streams.broker.ports import HOST, free_port
from streams.errors import StreamsError
from streams.log.admin import Admin, TopicSpec
from streams.log.clients import Log, LogSettings, Writer
from streams.log.tail import Tail, read_to_end
from streams.processes.child import Child
from streams.record import Output, Record
from streams.stages.follower import follow
from streams.stages.processor import ProcessorSpec, ProcessResult
from streams.stages.runner import run_processor
from tests.builders import rollout_disposed, rollout_scored, service_of

pytestmark = [pytest.mark.chaos, pytest.mark.kafka]

PARTITIONS: Final = 2
NODES: Final = (1, 2, 3)
LONGEST_GAP_S: Final = 15.0
"""The broker's session time-out is 2 s, the controller's election 1 to 2 s; the rest is a busy test machine's."""


class Node(KafkaBroker):
    """One of three: broker and controller, with the shipped settings but for replication."""

    def __init__(self, number: int, controllers: dict[int, int], cluster_id: str, directory: Path) -> None:
        super().__init__(BrokerSettings(kind="kafka", port=free_port(), heap_mib=256), directory)
        self._number, self._controllers, self._cluster_id = number, controllers, cluster_id

    def _command(self, port: int, deadline_s: float) -> list[str]:
        data, properties = self.home / "kafka", self.home / "server.properties"
        own = server_properties(self.settings, data, port, self._controllers[self._number])
        voters = ",".join(f"{number}@{HOST}:{at}" for number, at in self._controllers.items())
        replicated = {
            "default.replication.factor": 3,
            "min.insync.replicas": 2,
            "offsets.topic.replication.factor": 3,
            "transaction.state.log.replication.factor": 3,
            "transaction.state.log.min.isr": 2,
        }
        write_properties(properties, own | replicated | {"node.id": self._number, "controller.quorum.voters": voters})
        if not (data / "meta.properties").exists():
            tool = [*self._java(), "kafka.tools.StorageTool", "format", "-t", self._cluster_id, "-c", str(properties)]
            assert Child.start(tool, log=self.log, name="Kafka's storage tool").wait(deadline_s) == 0, self.log
        return [*self._java("-Xmx256m", "-XX:+UseSerialGC"), "kafka.Kafka", str(properties)]


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[Node]]:
    """A cluster of three; they start together, since none is ready alone."""
    if (obstacle := kafka_obstacle(BrokerSettings(kind="kafka"))) is not None:
        pytest.skip(f"Apache Kafka cannot run: {obstacle}")
    controllers, cluster_id = {number: free_port() for number in NODES}, random_cluster_id()
    found = [Node(number, controllers, cluster_id, tmp_path / f"node{number}") for number in NODES]
    try:
        with ThreadPoolExecutor(len(found)) as pool:
            list(pool.map(lambda node: node.start(90.0), found))
        yield found
    finally:
        for node in found:
            node.stop(0)


class Dispose:
    """A processor that ends every score, one output a record."""

    def on_event(self, event: Event, record: Record, now_s: float) -> ProcessResult:
        assert isinstance(event, RolloutScored)
        end = rollout_disposed(event.rollout_id, record.ref, time_s=now_s)
        return ProcessResult((Output("groups", end, key=event.group_id),), (record.ref,))

    def on_side_input(self, event: Event, record: Record, now_s: float) -> ProcessResult:
        return ProcessResult()

    def on_own_output(self, event: Event, record: Record) -> None:
        return

    def on_time(self, now_s: float) -> ProcessResult:
        return ProcessResult()

    def next_time_s(self) -> float | None:
        return None

    def waiting(self, now_s: float) -> list[str]:
        return []


SPEC: Final = ProcessorSpec("dispose", "scores", (), Tail("groups", horizon_s=60.0), "one")


class Traffic:
    """Writer, stage and reader, each started again when it fails, as a supervisor does."""

    def __init__(self, log: Log, directory: Path) -> None:
        self._log, self._directory = log, directory
        self.stopping = asyncio.Event()
        self.acknowledged: set[str] = set()
        self.ends: Counter[Ref] = Counter()
        self.restarts: Counter[str] = Counter()
        self.moments_s: list[float] = []

    async def again(self, name: str) -> None:
        """Run one of them until the end."""
        while not self.stopping.is_set():
            try:
                await getattr(self, name)()
            except* StreamsError:
                self.restarts[name] += 1

    async def write(self) -> None:
        """A record every 5 ms; an id that was not acknowledged is not counted on."""
        async with Writer(self._log) as writer:
            while not self.stopping.is_set():
                name = f"{time.monotonic_ns():x}"
                await writer.write(Output("scores", score(name), key=name))
                self.acknowledged.add(f"{name}.0")
                await asyncio.sleep(0.005)

    async def stage(self) -> None:
        """The exactly-once stage."""
        async with service_of(self._log, self._directory) as service:
            task = service.spawn(run_processor(service, SPEC, lambda _: Dispose()), "processor")
            await asyncio.wait([task, asyncio.ensure_future(self.stopping.wait())], return_when="FIRST_COMPLETED")

    async def read(self) -> None:
        """When did outcomes arrive."""
        async with service_of(self._log, self._directory) as service:
            task = service.spawn(follow(service, ["groups"], on=self._on_end, start="latest"), "follow")
            await asyncio.wait([task, asyncio.ensure_future(self.stopping.wait())], return_when="FIRST_COMPLETED")

    def _on_end(self, event: Event, record: Record) -> None:
        self.moments_s.append(time.monotonic())


def score(name: str) -> RolloutScored:
    return rollout_scored(name, 0, samples=1)


async def progress(traffic: Traffic, deadline_s: float = 40.0) -> None:
    """Until outcomes that were decided after this call have arrived."""
    seen = len(traffic.moments_s)
    async with asyncio.timeout(deadline_s):
        while len(traffic.moments_s) < seen + 100:
            await asyncio.sleep(0.02)


@pytest.mark.timeout(240)
async def test_any_one_broker_may_die(nodes: list[Node], tmp_path: Path) -> None:
    bootstrap = ",".join(node.bootstrap for node in nodes)
    names = [f"three.{topic}" for topic in ("scores", "groups", "dead-letters")]
    with Admin(bootstrap, 60.0) as admin:
        admin.create_topics([TopicSpec(name, PARTITIONS if "dead" not in name else 1) for name in names], replication=3)
        assert {topic.replication for topic in admin.describe(names).values()} == {3}
    log = Log(LogSettings(bootstrap, "three", PARTITIONS, call_timeout_s=20.0), "test")
    traffic = Traffic(log, tmp_path)
    async with asyncio.TaskGroup() as tasks:
        for name in ("write", "stage", "read"):
            tasks.create_task(traffic.again(name))
        await progress(traffic)
        gaps_s = {}
        for node in nodes:
            killed_s = time.monotonic()
            await asyncio.to_thread(node.kill)
            await progress(traffic)
            # The next may die only when this one is in sync again, or two of three copies would be gone.
            await asyncio.to_thread(node.start, 60.0)
            await progress(traffic)
            await in_sync(bootstrap, names)
            gaps_s[node.bootstrap] = longest_gap_s(traffic.moments_s, killed_s)
        traffic.stopping.set()
    print(f"longest standstill after each kill: {[round(gap, 1) for gap in gaps_s.values()]} s; {traffic.restarts}")
    written = await records(log, "scores")
    present = {event.rollout_id for event in written.values() if isinstance(event, RolloutScored)}
    assert traffic.acknowledged <= present
    assert max(gaps_s.values()) < LONGEST_GAP_S, gaps_s
    await finish(log, tmp_path, len(written))
    ends = Counter(
        event.rollout for event in (await records(log, "groups")).values() if isinstance(event, RolloutDisposed)
    )
    assert set(ends) == set(written)
    assert set(ends.values()) == {1}


async def in_sync(bootstrap: str, names: list[str], deadline_s: float = 60.0) -> None:
    """Until every partition has three copies in sync."""

    def missing() -> int:
        with Admin(bootstrap, 30.0) as admin:
            found = admin._client.describe_topics(names)
            return sum(len(p["isr_nodes"]) < 3 for topic in found for p in topic["partitions"])

    async with asyncio.timeout(deadline_s):
        while await asyncio.to_thread(missing):
            await asyncio.sleep(0.2)


def longest_gap_s(moments_s: list[float], since_s: float) -> float:
    after = [since_s, *(moment for moment in moments_s if moment > since_s)]
    return max(later - earlier for earlier, later in itertools.pairwise(after))


async def finish(log: Log, directory: Path, records_written: int) -> None:
    """Let the stage take what it had not taken when the traffic stopped."""
    traffic = Traffic(log, directory)
    task = asyncio.create_task(traffic.again("stage"))
    async with asyncio.timeout(60):
        while len(await records(log, "groups")) < records_written:
            await asyncio.sleep(0.1)
    traffic.stopping.set()
    with suppress(asyncio.CancelledError):
        await task


async def records(log: Log, topic: str) -> dict[Ref, Event]:
    found = await read_to_end(log, {(topic, p): None for p in log.partitions(topic)})
    return {record.ref: decode(record.value) for record in found}
