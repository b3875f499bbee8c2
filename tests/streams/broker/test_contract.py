"""What eachprompt needs of a broker, said once and asked of every kind.

A kind's known gaps are in `GAPS`: strict expected failures, so that a gap which closes is noticed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.errors import KafkaError, ProducerFenced
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from streams.broker import Broker, BrokerSettings, open_broker
from streams.broker.jars import kafka_obstacle
from streams.broker.local import LocalBroker
from streams.log.admin import Admin, Committed, TopicSpec, create_topics
from streams.processes.child import Child

pytestmark = pytest.mark.timeout(180)

GAPS: dict[tuple[str, str], tuple[type[Exception] | tuple[type[Exception], ...], str]] = {
    ("embedded", "test_an_abandoned_transaction_is_aborted"): (
        TimeoutError,
        "transaction.timeout.ms is not enforced",
    ),
    ("embedded", "test_a_reader_goes_on_after_an_aborted_transaction"): (
        TimeoutError,
        "a fetch that begins behind an aborted transaction still lists it, so that clients drop the same producer's "
        "committed records",
    ),
    ("embedded", "test_a_crashed_group_member_is_replaced"): (
        TimeoutError,
        "a member that stops its heartbeats never expires",
    ),
    ("embedded", "test_kill_9_keeps_what_was_acknowledged"): (
        # The topic itself is gone, or a part of its records.
        (AssertionError, TimeoutError),
        "state is written once a second and never synced",
    ),
    ("embedded", "test_a_zombie_is_fenced_across_a_restart"): (
        (AssertionError, TimeoutError),
        "producer epochs are forgotten at restart",
    ),
}

# The shortest that each kind takes: the embedded broker refuses less than Kafka's default minimum.
SESSION_MS = {"kafka": 1500, "embedded": 6000, "external": 6000}

MakeTopic = Callable[..., str]


@pytest.fixture(autouse=True)
def known_gaps(request: pytest.FixtureRequest) -> None:
    callspec = getattr(request.node, "callspec", None)
    kind = str(next(iter(callspec.params.values()))) if callspec is not None else ""
    if gap := GAPS.get((kind, request.node.originalname)):
        error, reason = gap
        request.applymarker(pytest.mark.xfail(strict=True, reason=reason, raises=error))


@pytest.fixture(scope="module", params=["kafka", "embedded"])
def mortal(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBroker]:
    """A running local broker that the tests of this module may stop and kill; they leave it running."""
    settings = BrokerSettings(kind=request.param, ephemeral=True)
    if request.param == "kafka" and (obstacle := kafka_obstacle(settings)) is not None:
        pytest.skip(f"Apache Kafka cannot run: {obstacle}")
    with open_broker(settings, tmp_path_factory.mktemp("mortal")) as broker:
        assert isinstance(broker, LocalBroker)
        yield broker


@contextlib.asynccontextmanager
async def producing(bootstrap: str, **settings: Any) -> AsyncIterator[Any]:
    """A started producer with the project's guarantees; stopped at the end even when the broker is gone."""
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", enable_idempotence=True, **settings)
    try:
        await asyncio.wait_for(producer.start(), 20)
        yield producer
    finally:
        with contextlib.suppress(KafkaError, TimeoutError):
            await asyncio.wait_for(producer.stop(), 10)
        # Where stopping ends in the error of a fenced producer, it leaves connections open, which whoever collects them
        # complains about: another test, or the end of them all.
        with contextlib.suppress(KafkaError, TimeoutError):
            await asyncio.wait_for(producer.client.close(), 10)


@contextlib.asynccontextmanager
async def consuming(bootstrap: str, *topics: str, **settings: Any) -> AsyncIterator[Any]:
    """A started read_committed consumer from the earliest offset, without automatic commits."""
    defaults = {"isolation_level": "read_committed", "enable_auto_commit": False, "auto_offset_reset": "earliest"}
    consumer = AIOKafkaConsumer(*topics, bootstrap_servers=bootstrap, **(defaults | settings))
    try:
        await asyncio.wait_for(consumer.start(), 20)
        yield consumer
    finally:
        await asyncio.wait_for(consumer.stop(), 40)


def patience_s(broker: Broker, gap_s: float) -> float:
    """How long to wait for what `broker` is to do: `gap_s` where it is known not to, and else for a busy machine."""
    return gap_s if broker.kind == "embedded" else 40.0


async def read(bootstrap: str, topic: str, count: int, deadline_s: float = 40, **settings: Any) -> list[Any]:
    """The first `count` records of a topic."""
    records: list[Any] = []
    async with asyncio.timeout(deadline_s), consuming(bootstrap, topic, **settings) as consumer:
        while len(records) < count:
            records.append(await consumer.getone())
    return records


async def test_acknowledged_records_are_read_back_in_order(broker: Broker, make_topic: MakeTopic) -> None:
    topic = make_topic("records", partitions=3, retention_ms=-1)  # they are of 1970
    async with producing(broker.bootstrap) as producer:
        sent = [
            await producer.send_and_wait(
                topic,
                b"%d" % i,
                key=b"key",
                partition=1,
                timestamp_ms=1000 + i,
                headers=[("traceparent", b"00-%d" % i)],
            )
            for i in range(20)
        ]
    assert [record.offset for record in sent] == list(range(20))
    found = await read(broker.bootstrap, topic, 20)
    assert [
        (record.partition, record.offset, record.key, record.value, record.timestamp, record.headers)
        for record in found
    ] == [(1, i, b"key", b"%d" % i, 1000 + i, (("traceparent", b"00-%d" % i),)) for i in range(20)]


async def test_offsets_with_metadata_commit_with_the_transaction(
    broker: Broker, make_topic: MakeTopic, prefix: str
) -> None:
    source, target = make_topic("in"), make_topic("out")
    partition = TopicPartition(source, 0)
    bitmap = "b" * 4096
    async with producing(broker.bootstrap, transactional_id=f"{prefix}.stage") as producer:
        async with producer.transaction():
            await (await producer.send(target, b"one"))
            await producer.send_offsets_to_transaction({partition: OffsetAndMetadata(7, bitmap)}, prefix)
        with contextlib.suppress(ZeroDivisionError):
            async with producer.transaction():
                await (await producer.send(target, b"never"))
                await producer.send_offsets_to_transaction({partition: OffsetAndMetadata(9, "never")}, prefix)
                raise ZeroDivisionError
    with Admin(broker.bootstrap) as admin:
        assert await asyncio.to_thread(admin.committed, prefix) == {partition: Committed(7, bitmap)}


async def test_a_second_producer_fences_the_first(broker: Broker, make_topic: MakeTopic, prefix: str) -> None:
    topic = make_topic("fenced")
    async with producing(broker.bootstrap, transactional_id=prefix) as zombie:
        await zombie.begin_transaction()
        await (await zombie.send(topic, b"zombie"))
        async with producing(broker.bootstrap, transactional_id=prefix) as successor:
            with pytest.raises(ProducerFenced):
                await asyncio.wait_for(zombie.commit_transaction(), 10)
            async with successor.transaction():
                await (await successor.send(topic, b"successor"))
    assert [record.value for record in await read(broker.bootstrap, topic, 1)] == [b"successor"]


async def test_only_committed_records_are_read(broker: Broker, make_topic: MakeTopic, prefix: str) -> None:
    topic = make_topic("isolated")
    async with producing(broker.bootstrap, transactional_id=prefix) as producer:
        await producer.begin_transaction()
        await (await producer.send(topic, b"record"))
        assert await read(broker.bootstrap, topic, 1, isolation_level="read_uncommitted")
        with Admin(broker.bootstrap) as admin:
            assert await asyncio.to_thread(admin.end_offsets, [topic], True) == {(topic, 0): 0}
        async with consuming(broker.bootstrap, topic) as consumer:
            assert not await consumer.getmany(timeout_ms=300), "an open transaction is visible"
            await producer.commit_transaction()
            assert (await asyncio.wait_for(consumer.getone(), 10)).value == b"record"


async def test_an_aborted_record_is_never_read(broker: Broker, make_topic: MakeTopic, prefix: str) -> None:
    topic = make_topic("aborted")
    async with producing(broker.bootstrap, transactional_id=prefix) as producer:
        await producer.begin_transaction()
        await (await producer.send(topic, b"aborted"))
        await producer.abort_transaction()
        async with producer.transaction():
            await (await producer.send(topic, b"committed"))
    assert [record.value for record in await read(broker.bootstrap, topic, 1)] == [b"committed"]


async def test_a_reader_goes_on_after_an_aborted_transaction(
    broker: Broker, make_topic: MakeTopic, prefix: str
) -> None:
    topic = make_topic("went-on")
    async with producing(broker.bootstrap, transactional_id=prefix) as producer:
        await producer.begin_transaction()
        await (await producer.send(topic, b"aborted"))
        await producer.abort_transaction()
        async with consuming(broker.bootstrap, topic) as consumer, asyncio.timeout(patience_s(broker, 5)):
            while await consumer.position(TopicPartition(topic, 0)) < 2:
                await consumer.getmany(timeout_ms=100)
            async with producer.transaction():
                await (await producer.send(topic, b"committed"))
            assert (await consumer.getone()).value == b"committed"


async def test_an_abandoned_transaction_is_aborted(broker: Broker, make_topic: MakeTopic, prefix: str) -> None:
    topic = make_topic("abandoned")
    async with (
        producing(broker.bootstrap, transactional_id=prefix, transaction_timeout_ms=1000) as vanished,
        producing(broker.bootstrap) as other,
    ):
        await vanished.begin_transaction()
        await (await vanished.send(topic, b"hanging"))
        await other.send_and_wait(topic, b"behind")
        found = await read(broker.bootstrap, topic, 1, deadline_s=patience_s(broker, 6))
        assert [record.value for record in found] == [b"behind"]


async def test_a_member_that_leaves_hands_over(broker: Broker, make_topic: MakeTopic, prefix: str) -> None:
    topic = make_topic("handed", partitions=2)
    async with producing(broker.bootstrap) as producer:
        for i in range(4):
            await producer.send_and_wait(topic, b"%d" % i, partition=0)
    async with consuming(broker.bootstrap, topic, group_id=prefix) as first:
        assert [(await asyncio.wait_for(first.getone(), 15)).value for _ in range(2)] == [b"0", b"1"]
        await first.commit({TopicPartition(topic, 0): OffsetAndMetadata(2, "halfway")})
    assert (await read(broker.bootstrap, topic, 1, group_id=prefix))[0].value == b"2"
    with Admin(broker.bootstrap) as admin:
        assert (await asyncio.to_thread(admin.committed, prefix))[(topic, 0)] == (2, "halfway")  # type: ignore[index]
        assert await asyncio.to_thread(admin.lag, prefix, [topic]) == {(topic, 0): 2, (topic, 1): 0}


MEMBER = textwrap.dedent("""
    import asyncio, sys
    from aiokafka import AIOKafkaConsumer

    async def main():
        bootstrap, topic, group, session_ms = sys.argv[1:]
        consumer = AIOKafkaConsumer(
            topic, bootstrap_servers=bootstrap, group_id=group, auto_offset_reset="earliest", enable_auto_commit=False,
            session_timeout_ms=int(session_ms), heartbeat_interval_ms=300,
        )
        await consumer.start()
        await consumer.getone()
        print("READING", flush=True)
        await asyncio.Event().wait()

    asyncio.run(main())
""")
"""The program of a group member that holds its partitions until it is killed."""


async def test_a_crashed_group_member_is_replaced(
    broker: Broker, make_topic: MakeTopic, prefix: str, tmp_path: Path
) -> None:
    topic = make_topic("taken-over")
    async with producing(broker.bootstrap) as producer:
        await producer.send_and_wait(topic, b"record")
    session_ms = SESSION_MS[broker.kind]
    log = tmp_path / "member.log"
    member = Child.start([sys.executable, "-c", MEMBER, broker.bootstrap, topic, prefix, str(session_ms)], log=log)
    try:
        deadline = time.monotonic() + 60
        while "READING" not in log.read_text():
            assert time.monotonic() < deadline, log.read_text()
            assert member.wait(0.05) is None, log.read_text()
    finally:
        member.stop(0, signal.SIGKILL)
    deadline_s = patience_s(broker, session_ms / 1000 + 4)
    records = await read(broker.bootstrap, topic, 1, deadline_s, group_id=prefix, session_timeout_ms=session_ms)
    assert records[0].value == b"record"


async def test_a_time_is_found_as_an_offset(broker: Broker, make_topic: MakeTopic) -> None:
    topic = make_topic("timed", retention_ms=-1)  # they are of 2023
    async with producing(broker.bootstrap) as producer:
        for i in range(10):
            await producer.send_and_wait(topic, b"x", timestamp_ms=1_700_000_000_000 + 1000 * i)
    partition = TopicPartition(topic, 0)
    async with consuming(broker.bootstrap, topic) as consumer:
        found = await asyncio.wait_for(consumer.offsets_for_times({partition: 1_700_000_004_500}), 10)
        assert (found[partition].offset, found[partition].timestamp) == (5, 1_700_000_005_000)
        beyond = await asyncio.wait_for(consumer.offsets_for_times({partition: 1_800_000_000_000}), 10)
        assert beyond[partition] is None


async def test_old_records_can_be_deleted(broker: Broker, make_topic: MakeTopic) -> None:
    topic = make_topic("trimmed", retention_ms=3_600_000)
    async with producing(broker.bootstrap) as producer:
        for i in range(10):
            await producer.send_and_wait(topic, b"%d" % i)
    partition = TopicPartition(topic, 0)
    with Admin(broker.bootstrap) as admin:
        await asyncio.to_thread(admin.delete_records, {partition: 6})
        assert await asyncio.to_thread(admin.start_offsets, [topic]) == {partition: 6}
        config = (await asyncio.to_thread(admin.describe, [topic]))[topic].config
        assert config["retention.ms"] == "3600000"
    assert (await read(broker.bootstrap, topic, 1))[0].value == b"6"


async def test_a_compacted_topic_is_accepted(broker: Broker, make_topic: MakeTopic) -> None:
    topic = make_topic("weights", cleanup="compact")
    with Admin(broker.bootstrap) as admin:
        config = (await asyncio.to_thread(admin.describe, [topic]))[topic].config
    assert config["cleanup.policy"] == "compact"
    async with producing(broker.bootstrap) as producer:
        await producer.send_and_wait(topic, b"1", key=b"version")
    assert (await read(broker.bootstrap, topic, 1))[0].key == b"version"


async def test_a_record_of_16_mib_goes_through(broker: Broker, make_topic: MakeTopic) -> None:
    topic = make_topic("large", config={"max.message.bytes": str(20 << 20)})
    payload = os.urandom(16 << 20)
    async with producing(broker.bootstrap, max_request_size=20 << 20) as producer:
        await asyncio.wait_for(producer.send_and_wait(topic, payload), 20)
        await producer.send_and_wait(topic, b"after")
    large, after = await read(broker.bootstrap, topic, 2, max_partition_fetch_bytes=20 << 20)
    assert hashlib.sha256(large.value).digest() == hashlib.sha256(payload).digest()
    assert after.value == b"after"


async def prepare(broker: LocalBroker, topic: str) -> None:
    await asyncio.to_thread(create_topics, broker.bootstrap, [TopicSpec(topic, 1, config={"retention.ms": "-1"})])


async def test_a_restart_keeps_topics_records_and_offsets(mortal: LocalBroker, prefix: str) -> None:
    await prepare(mortal, prefix)
    partition = TopicPartition(prefix, 0)
    async with producing(mortal.bootstrap, transactional_id=prefix) as producer, producer.transaction():
        for i in range(100):
            await (await producer.send(prefix, b"%d" % i))
        await producer.send_offsets_to_transaction({partition: OffsetAndMetadata(3, "three")}, prefix)
    before = mortal.bootstrap
    await asyncio.to_thread(mortal.stop, 60)
    assert not mortal.alive()
    await asyncio.to_thread(mortal.start, 90)
    assert mortal.bootstrap == before, "clients of a run know its broker by this address"
    assert [record.value for record in await read(before, prefix, 100)] == [b"%d" % i for i in range(100)]
    with Admin(before) as admin:
        assert (await asyncio.to_thread(admin.committed, prefix))[partition] == Committed(3, "three")
        assert (await asyncio.to_thread(admin.describe, [prefix]))[prefix].config["retention.ms"] == "-1"


async def test_kill_9_keeps_what_was_acknowledged(mortal: LocalBroker, prefix: str) -> None:
    await prepare(mortal, prefix)
    acknowledged: list[bytes] = []
    enough = asyncio.Event()

    async def produce() -> None:
        async with producing(mortal.bootstrap) as producer:
            while True:
                record = b"%d" % len(acknowledged)
                await producer.send_and_wait(prefix, record)
                acknowledged.append(record)
                if len(acknowledged) == 500:
                    enough.set()

    task = asyncio.create_task(produce())
    await asyncio.wait_for(enough.wait(), 60)
    mortal.kill()
    task.cancel()
    before = list(acknowledged)
    await asyncio.to_thread(mortal.start, 90)
    await asyncio.wait({task}, timeout=15)
    with Admin(mortal.bootstrap) as admin:
        assert prefix in await asyncio.to_thread(admin.describe, [prefix]), "the topic itself is gone"
    found = await read(mortal.bootstrap, prefix, len(before), deadline_s=patience_s(mortal, 10))
    assert [record.value for record in found] == before


async def test_a_zombie_is_fenced_across_a_restart(mortal: LocalBroker, prefix: str) -> None:
    await prepare(mortal, prefix)
    async with producing(mortal.bootstrap, transactional_id=prefix) as zombie:
        async with zombie.transaction():
            await (await zombie.send(prefix, b"before"))
        await asyncio.to_thread(mortal.stop, 60)
        await asyncio.to_thread(mortal.start, 90)
        async with producing(mortal.bootstrap, transactional_id=prefix) as successor:
            async with successor.transaction():
                await (await successor.send(prefix, b"after"))
            fenced = False
            try:
                async with asyncio.timeout(15), zombie.transaction():
                    await (await zombie.send(prefix, b"zombie"))
            except KafkaError:
                fenced = True
            assert fenced, "a producer that was replaced could still commit"
    assert [record.value for record in await read(mortal.bootstrap, prefix, 2)] == [b"before", b"after"]
