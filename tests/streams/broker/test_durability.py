"""What a broker keeps when it is stopped, killed or started again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from aiokafka.errors import KafkaError
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from streams.broker import BrokerSettings, open_broker
from streams.broker.jars import kafka_obstacle
from streams.broker.local import LocalBroker
from streams.log.admin import Admin, Committed, TopicSpec, create_topics
from tests.streams.broker.contract import patience_s, producing, read

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module", params=["kafka", "embedded"])
def mortal(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBroker]:
    """A running local broker that the tests of this module may stop and kill; they leave it running."""
    settings = BrokerSettings(kind=request.param, ephemeral=True)
    if request.param == "kafka" and (obstacle := kafka_obstacle(settings)) is not None:
        pytest.skip(f"Apache Kafka cannot run: {obstacle}")
    with open_broker(settings, tmp_path_factory.mktemp("mortal")) as broker:
        assert isinstance(broker, LocalBroker)
        yield broker


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
