"""The proxy: clients stay behind it although the broker advertises itself, and each fault does what it says."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from streams.broker import Broker, BrokerSettings, open_broker
from streams.log.admin import TopicSpec, create_topics
from tests.chaos.proxy import Proxy


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    settings = BrokerSettings(kind="embedded", ephemeral=True)
    with open_broker(settings, tmp_path_factory.mktemp("broker")) as broker:
        create_topics(broker.bootstrap, [TopicSpec("t", 1)])
        yield broker


@pytest.fixture
async def proxy(broker: Broker) -> AsyncIterator[Proxy]:
    host, _, port = broker.bootstrap.partition(":")
    proxy = Proxy(host, int(port))
    await proxy.open()
    yield proxy
    await proxy.close()


@pytest.fixture
async def producer(proxy: Proxy) -> AsyncIterator[AIOKafkaProducer]:
    producer = AIOKafkaProducer(
        bootstrap_servers=f"127.0.0.1:{proxy.port}", acks="all", enable_idempotence=True, request_timeout_ms=2000
    )
    async with asyncio.timeout(60):
        await producer.start()
    yield producer
    proxy.go_on()
    await producer.stop()


async def send(producer: AIOKafkaProducer, value: bytes, within_s: float = 60.0) -> int:
    async with asyncio.timeout(within_s):
        return int((await producer.send_and_wait("t", value)).offset)


async def test_a_client_that_learned_the_brokers_address_still_comes_through_the_proxy(
    proxy: Proxy, producer: AIOKafkaProducer
) -> None:
    await send(producer, b"one")
    assert {(node.host, node.port) for node in producer.client.cluster.brokers()} == {("127.0.0.1", proxy.port)}
    proxy.stall()
    with pytest.raises(TimeoutError):
        await send(producer, b"stalled", within_s=0.5)
    proxy.go_on()
    await send(producer, b"two")


async def test_a_reset_connection_is_made_again_and_nothing_is_written_twice(
    proxy: Proxy, producer: AIOKafkaProducer, broker: Broker
) -> None:
    first = await send(producer, b"first")
    for _ in range(5):
        sending = asyncio.ensure_future(send(producer, b"again"))
        await asyncio.sleep(0)
        proxy.reset()
        await sending
    last = await send(producer, b"last")
    consumer = AIOKafkaConsumer("t", bootstrap_servers=broker.bootstrap, auto_offset_reset="earliest")
    async with asyncio.timeout(60):
        await consumer.start()
        values: list[bytes] = []
        while len(values) <= last:
            for records in (await consumer.getmany(timeout_ms=200)).values():
                values += [record.value for record in records]
        await consumer.stop()
    assert values[first:] == [b"first", *[b"again"] * 5, b"last"]


async def test_a_refused_client_gets_through_afterwards(proxy: Proxy, producer: AIOKafkaProducer) -> None:
    proxy.refuse()
    sending = asyncio.ensure_future(send(producer, b"refused"))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await asyncio.shield(sending)
    proxy.go_on()
    await sending


async def test_a_throttled_connection_passes_so_many_bytes_a_second(proxy: Proxy, producer: AIOKafkaProducer) -> None:
    await send(producer, b"warm")
    proxy.throttle(100_000)
    loop = asyncio.get_running_loop()
    began = loop.time()
    await send(producer, bytes(50_000))
    assert 0.5 <= loop.time() - began < 5.0
