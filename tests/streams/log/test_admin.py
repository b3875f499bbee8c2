"""Topic administration against real brokers of every kind."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.structs import OffsetAndMetadata
from aiokafka.structs import TopicPartition as Partition

from streams.broker import Broker, BrokerSettings, open_broker
from streams.broker.local import LocalBroker
from streams.broker.ports import free_port
from streams.log.admin import (
    Admin,
    AdminError,
    Committed,
    TopicDescription,
    TopicMismatchError,
    TopicPartition,
    TopicSpec,
    create_topics,
)

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def admin(broker: Broker) -> Iterator[Admin]:
    with Admin(broker.bootstrap) as admin:
        yield admin


async def produce(bootstrap: str, topic: str, count: int, partition: int = 0) -> None:
    """Records of 2023: the topic must keep them indefinitely, or retention may delete them at any moment."""
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all")
    await producer.start()
    try:
        for i in range(count):
            await producer.send_and_wait(
                topic, b"%d" % i, partition=partition, timestamp_ms=1_700_000_000_000 + 1000 * i
            )
    finally:
        await producer.stop()


def test_topics_are_made_once(admin: Admin, prefix: str) -> None:
    specs = [
        TopicSpec(f"{prefix}.rollouts", 4, retention_ms=-1, config={"max.message.bytes": "20000000"}),
        TopicSpec(f"{prefix}.weights", 1, cleanup="compact"),
    ]
    assert admin.create_topics(specs) == [spec.name for spec in specs]
    assert admin.create_topics(specs) == []
    assert admin.create_topics([*specs, TopicSpec(f"{prefix}.steps", 1)]) == [f"{prefix}.steps"]
    assert admin.describe([specs[0].name]) == {
        specs[0].name: TopicDescription(
            specs[0].name,
            partitions=4,
            replication=1,
            config={"cleanup.policy": "delete", "max.message.bytes": "20000000", "retention.ms": "-1"},
        )
    }
    everything = admin.describe()
    assert {name for name in everything if name.startswith(prefix)} == {
        f"{prefix}.{n}" for n in ("rollouts", "weights", "steps")
    }
    assert not [name for name in everything if name.startswith("__")], "the broker's own topics are not shown"


def test_a_topic_that_differs_is_refused(admin: Admin, prefix: str) -> None:
    admin.create_topics([TopicSpec(prefix, 2)])
    with pytest.raises(TopicMismatchError, match=f"topic {prefix} exists with 2 partitions, but 3 are configured"):
        admin.create_topics([TopicSpec(prefix, 3)])
    with pytest.raises(
        AdminError, match=f"topic {prefix} exists with cleanup.policy 'delete', but 'compact' is needed"
    ):
        admin.create_topics([TopicSpec(prefix, 2, cleanup="compact")])
    assert admin.create_topics([TopicSpec(prefix, 2, retention_ms=60_000)]) == [], "retention is the operator's"


def test_specifications_are_checked(kafka_broker: Broker, prefix: str) -> None:
    with pytest.raises(AdminError, match=f"topic {prefix} has 0 partitions"):
        TopicSpec(prefix, 0)
    with pytest.raises(AdminError, match=f"topic {prefix} was not made: .*no.such.setting"):
        create_topics(kafka_broker.bootstrap, [TopicSpec(prefix, 1, config={"no.such.setting": "1"})])
    with pytest.raises(AdminError, match=f"topic {prefix} was not made: .*[Rr]eplication factor"):
        create_topics(kafka_broker.bootstrap, [TopicSpec(prefix, 1)], replication=3)


async def test_positions_and_lag(admin: Admin, broker: Broker, prefix: str) -> None:
    await asyncio.to_thread(admin.create_topics, [TopicSpec(prefix, 2, retention_ms=-1)])
    await produce(broker.bootstrap, prefix, 10, partition=1)
    first, second = TopicPartition(prefix, 0), TopicPartition(prefix, 1)

    def look() -> None:
        assert admin.end_offsets([prefix]) == {first: 0, second: 10}
        assert admin.start_offsets([prefix]) == {first: 0, second: 0}
        assert admin.offsets_at([prefix], 1_700_000_003_500) == {first: 0, second: 4}
        assert admin.offsets_at([prefix], 1_800_000_000_000) == {first: 0, second: 10}
        assert admin.newest_s([prefix]) == {prefix: 1_700_000_009.0}
        assert admin.committed(f"{prefix}.group") == {}
        assert admin.lag(f"{prefix}.group", [prefix]) == {first: 0, second: 10}
        admin.delete_records({second: 2})
        assert admin.lag(f"{prefix}.group", [prefix]) == {first: 0, second: 8}, "deleted records are no lag"
        assert admin.committed(f"{prefix}.group") == {}

    await asyncio.to_thread(look)


async def test_a_commit_is_seen_with_its_metadata(admin: Admin, broker: Broker, prefix: str) -> None:
    await asyncio.to_thread(admin.create_topics, [TopicSpec(prefix, 1, retention_ms=-1)])
    await produce(broker.bootstrap, prefix, 3)
    consumer = AIOKafkaConsumer(bootstrap_servers=broker.bootstrap, group_id=prefix, enable_auto_commit=False)
    await consumer.start()
    try:
        consumer.assign([Partition(prefix, 0)])
        await consumer.commit({Partition(prefix, 0): OffsetAndMetadata(1, "above: 2")})
    finally:
        await consumer.stop()
    assert await asyncio.to_thread(admin.committed, prefix) == {(prefix, 0): Committed(1, "above: 2")}
    assert await asyncio.to_thread(admin.lag, prefix, [prefix]) == {(prefix, 0): 2}


def test_an_unknown_topic_is_named(admin: Admin, prefix: str) -> None:
    assert admin.describe([prefix]) == {}
    assert admin.describe([]) == {}
    with pytest.raises(AdminError, match=f"topic {prefix} does not exist at 127.0.0.1:"):
        admin.end_offsets([prefix])


def test_deleted_topics_are_gone(admin: Admin, prefix: str) -> None:
    admin.create_topics([TopicSpec(prefix, 1)])
    admin.delete_topics([prefix])
    assert admin.describe([prefix]) == {}


def test_a_broker_that_is_not_there_is_named_by_the_deadline() -> None:
    address = f"127.0.0.1:{free_port()}"
    begun = time.monotonic()
    with pytest.raises(AdminError, match=f"broker at {address} is not ready after 0.5 s: waiting for a connection"):
        Admin(address, deadline_s=0.5)
    assert time.monotonic() - begun < 10


def test_a_server_that_says_nothing_is_named_by_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        begun = time.monotonic()
        with pytest.raises(AdminError, match="waiting for an answer to ApiVersions"):
            Admin(address, deadline_s=1.0)
        assert time.monotonic() - begun < 10


def test_a_broker_that_freezes_is_given_up_at_the_deadline(tmp_path: Path) -> None:
    broker = open_broker(BrokerSettings(kind="embedded", ephemeral=True), tmp_path)
    with broker:
        create_topics(broker.bootstrap, [TopicSpec("topic", 1)])
        with Admin(broker.bootstrap, deadline_s=3) as admin:
            assert isinstance(broker, LocalBroker)
            assert broker.pid is not None
            os.kill(broker.pid, signal.SIGSTOP)
            begun = time.monotonic()
            with pytest.raises(AdminError, match=f"at {broker.bootstrap}: "):
                admin.end_offsets(["topic"])
            assert time.monotonic() - begun < 10
            broker.kill()
