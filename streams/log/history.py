"""Reading a topic's history up to its end of now, for tools and for a service that looks back once at its start.

Synchronous and streaming: the client runs on an event loop of its own, which runs only while the caller asks for more.
Call it from a thread in which no event loop runs (`asyncio.to_thread`). It is built on aiokafka's compiled records, at
ten times the rate of kafka-python's.
"""

import asyncio
import time
from collections.abc import Iterator
from typing import Any, Final

import uvloop
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition

from schemas.topics import topic as catalogue_topic
from streams.errors import DeadlineError, StreamsError
from streams.log.aiokafka_fixes import close
from streams.log.clients import assert_fast_records, within
from streams.record import Record

_CALL_S: Final = 30.0
_IDLE_S: Final = 30.0
_POLL_MS: Final = 500
_FETCH_BYTES: Final = 1 << 20
_NEXT: Final = 5000


def read_topic(
    bootstrap: str, run: str, topic: str, *, since_s: float | None = None, until_s: float | None = None
) -> Iterator[Record]:
    """Every committed record of `topic` (short name) up to its end offsets of now, in log order by partition.

    Only those with a broker timestamp in [since_s, until_s), unix times; None is no bound. StreamsError: no broker, no
    such topic. DeadlineError: a call is not answered, or nothing comes although there is more.
    """
    assert_fast_records()
    full = catalogue_topic(topic).on(run)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        history = _History(bootstrap, full)
        try:
            runner.run(history.open(since_s))
            while messages := runner.run(history.read()):
                for message in messages:
                    at_s = message.timestamp / 1000
                    if until_s is None or at_s < until_s:
                        yield Record(
                            topic,
                            message.partition,
                            message.offset,
                            message.key,
                            message.value or b"",
                            {name: header or b"" for name, header in message.headers},
                            at_s,
                        )
        except KafkaError as error:
            raise StreamsError(f"topic {full} cannot be read at {bootstrap}: {error}") from error
        finally:
            runner.run(history.close())


class _History:
    """A consumer and the end offsets up to which it still has to read."""

    def __init__(self, bootstrap: str, full: str) -> None:
        self._bootstrap = bootstrap
        self._full = full
        self._consumer: AIOKafkaConsumer | None = None
        self._ends: dict[TopicPartition, int] = {}

    async def open(self, since_s: float | None) -> None:
        """Connect, and find the first and the last offset of every partition."""
        # Clients bind to the loop that runs when they are made.
        consumer = self._consumer = AIOKafkaConsumer(
            bootstrap_servers=self._bootstrap,
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_partition_fetch_bytes=_FETCH_BYTES,
            request_timeout_ms=int(_CALL_S * 1000),
        )
        await within(_CALL_S, f"for the broker at {self._bootstrap}", consumer.start())
        partitions = [TopicPartition(self._full, number) for number in await self._numbers()]
        consumer.assign(partitions)
        self._ends = await within(_CALL_S, f"for the ends of {self._full}", consumer.end_offsets(partitions))
        if since_s is None:
            await within(_CALL_S, f"for the starts of {self._full}", consumer.seek_to_beginning(*partitions))
            return
        times = dict.fromkeys(partitions, int(since_s * 1000))
        found = await within(_CALL_S, f"for the time index of {self._full}", consumer.offsets_for_times(times))
        for partition in partitions:
            entry = found.get(partition)
            consumer.seek(partition, self._ends[partition] if entry is None else entry.offset)

    async def _numbers(self) -> list[int]:
        """The topic's partitions; the consumer itself would wait for a topic that does not exist, or create it."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self._bootstrap, request_timeout_ms=int(_CALL_S * 1000))
        try:
            await within(_CALL_S, f"for the broker at {self._bootstrap}", admin.start())
            names = await within(_CALL_S, f"for the topics at {self._bootstrap}", admin.list_topics())
            if self._full not in names:
                raise StreamsError(f"topic {self._full} is not on the broker")
            found = await within(_CALL_S, f"for topic {self._full}", admin.describe_topics([self._full]))
        finally:
            await close(admin.close(), 5.0)
        return sorted(entry["partition"] for entry in found[0]["partitions"])

    async def read(self) -> list[Any]:
        """The next messages below the end offsets; empty when all were read."""
        idle_since = time.monotonic()
        consumer = self._consumer
        assert consumer is not None
        while await self._unread(consumer):
            batches = await within(
                _CALL_S, f"for records of {self._full}", consumer.getmany(timeout_ms=_POLL_MS, max_records=_NEXT)
            )
            found = [
                message for tp, messages in batches.items() for message in messages if message.offset < self._ends[tp]
            ]
            if found:
                return found
            if time.monotonic() - idle_since > _IDLE_S:
                raise DeadlineError(f"for records of {self._full}", _IDLE_S)
        return []

    async def _unread(self, consumer: AIOKafkaConsumer) -> bool:
        """Whether any partition is not at its end yet; those that are at theirs are fetched no more."""
        done = [tp for tp, end in self._ends.items() if await consumer.position(tp) >= end]
        for partition in done:
            del self._ends[partition]
        if done and self._ends:
            consumer.pause(*done)
        return bool(self._ends)

    async def close(self) -> None:
        """Disconnect."""
        if self._consumer is not None:
            await close(self._consumer.stop(), 5.0)
