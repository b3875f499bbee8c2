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
from pathlib import Path

import pytest
from aiokafka.errors import ProducerFenced
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from streams.broker import Broker
from streams.log.admin import Admin, Committed
from streams.processes.child import Child
from tests.streams.broker.contract import SESSION_MS, MakeTopic, consuming, patience_s, producing, read

pytestmark = pytest.mark.timeout(180)


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
