"""Clients of the log with the defaults that the guarantees need, and a deadline on every call.

Writers: acks=all, idempotent, no compression (arrays are dense). Readers: read_committed, no automatic commit.
Partitions are assigned to clients: replica k of n owns the partitions p with p % n == k, so that a restart waits for no
session time-out and there is no rebalance in which consumption could stop. `streams.stages.assignment` lets the
replicas of a stage divide them while they run.
"""

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, TypeVar

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition

from schemas import MAX_DEAD_LETTER_BYTES, TOPICS, Ref, encode, partition_of, schema_header
from schemas.topics import topic as catalogue_topic
from streams.cancellation import owned
from streams.errors import BrokerAwayError, DeliveryError, StreamsError
from streams.log.aiokafka_fixes import ABANDON_S, close, committed_offsets, stop_producer
from streams.log.retry import started
from streams.record import Output
from streams.telemetry import names, tracing

_T = TypeVar("_T")

_REQUEST_MARGIN_BYTES: Final = 1 << 20
_BATCH_BYTES: Final = 256 * 1024
FETCH_BYTES: Final = 4 << 20
_RESPONSE_BYTES: Final = 4 << 20
"""All partitions together: the event loop decodes a response in one go, 1 ms a MiB; aiokafka's default is 50 MiB."""

_BACKOFF_MS: Final = 300
"""Between attempts to reach a broker that is away. By default each client tries ten times a second: the thirty of a run
on one machine take a tenth of its CPU from the broker that they wait for."""


async def within(seconds: float, what: str, awaitable: Awaitable[_T]) -> _T:
    """Await the broker with a deadline; BrokerAwayError says `waited <seconds> s <what>`."""
    try:
        async with asyncio.timeout(seconds):
            return await owned(awaitable, f"the wait {what}")
    except TimeoutError as error:
        raise BrokerAwayError(what, seconds) from error


def assert_fast_records() -> None:
    """Refuse aiokafka's pure-Python records: 205 µs a record against 1.6 µs."""
    from aiokafka.util import NO_EXTENSIONS

    if NO_EXTENSIONS:
        raise StreamsError(
            "aiokafka runs without its C extension; install a wheel of it (AIOKAFKA_NO_EXTENSIONS unset)"
        )


@dataclass(frozen=True)
class LogSettings:
    """Where the log is and how long one call may take (seconds).

    `linger_ms`: how long a writer gathers records. At 3,000 a second 2 ms would make requests of three records, and the
    broker's work goes by requests.
    """

    bootstrap: str
    run: str
    partitions: int
    call_timeout_s: float = 30.0
    linger_ms: int = 10
    transaction_timeout_s: float = 20.0


class Log:
    """The topics of one run on one broker; makes readers and writers. Async context of its clients is the caller's."""

    def __init__(self, settings: LogSettings, client_id: str) -> None:
        assert_fast_records()
        self.settings = settings
        self.client_id = client_id
        self._run = settings.run.encode()
        self._full = {name: entry.on(settings.run) for name, entry in TOPICS.items()}

    def full(self, topic: str) -> str:
        """`<run>.<topic>`."""
        return self._full.get(topic) or catalogue_topic(topic).on(self.settings.run)

    def short(self, full: str) -> str:
        """The catalogue's name of a full topic name."""
        return full.removeprefix(f"{self.settings.run}.")

    def partitions(self, topic: str) -> range:
        """The partitions of `topic` in this run."""
        return range(self.settings.partitions if catalogue_topic(topic).sharded else 1)

    def owned(self, topic: str, ordinal: int, replicas: int) -> list[int]:
        """The partitions of `topic` that replica `ordinal` of `replicas` owns."""
        return [p for p in self.partitions(topic) if p % replicas == ordinal]

    def partition(self, output: Output) -> int:
        """Where `output` goes: the group's partition on sharded topics, 0 on the others."""
        if not TOPICS[output.topic].sharded:
            return 0
        if output.key is None:
            raise ValueError(f"an event on {output.topic} needs its group id as key")
        return _partition_of(output.key, self.settings.partitions)

    def headers(self, output: Output) -> list[tuple[str, bytes]]:
        """Record headers: schema, run, and the trace context of the span that is current."""
        headers = [(names.SCHEMA, schema_header(output.event)), (names.RUN_HEADER, self._run)]
        context = tracing.traceparent()
        if context is not None:
            headers.append((names.TRACEPARENT, context))
        return headers

    def producer(self, transactional_id: str | None = None) -> AIOKafkaProducer:
        """An idempotent producer, not started; transactional where an id is given."""
        return AIOKafkaProducer(
            bootstrap_servers=self.settings.bootstrap,
            client_id=self.client_id,
            acks="all",
            enable_idempotence=True,
            linger_ms=0 if transactional_id else self.settings.linger_ms,
            max_batch_size=_BATCH_BYTES,
            max_request_size=MAX_DEAD_LETTER_BYTES + _REQUEST_MARGIN_BYTES,
            request_timeout_ms=int(self.settings.call_timeout_s * 1000),
            retry_backoff_ms=_BACKOFF_MS,
            transactional_id=transactional_id,
            transaction_timeout_ms=int(self.settings.transaction_timeout_s * 1000),
        )

    def consumer(
        self, group: str | None = None, isolation: str = "read_committed", fetch_bytes: int = FETCH_BYTES
    ) -> AIOKafkaConsumer:
        """A consumer, not started and without partitions; `group` only names where it commits."""
        return AIOKafkaConsumer(
            bootstrap_servers=self.settings.bootstrap,
            client_id=self.client_id,
            group_id=group,
            isolation_level=isolation,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_partition_fetch_bytes=fetch_bytes,
            fetch_max_bytes=max(fetch_bytes, _RESPONSE_BYTES),
            fetch_max_wait_ms=100,
            request_timeout_ms=int(self.settings.call_timeout_s * 1000),
            retry_backoff_ms=_BACKOFF_MS,
        )

    def client(self) -> AIOKafkaClient:
        """Bare connections for requests that no other client makes, not bootstrapped."""
        return AIOKafkaClient(
            bootstrap_servers=self.settings.bootstrap,
            client_id=self.client_id,
            request_timeout_ms=int(self.settings.call_timeout_s * 1000),
            retry_backoff_ms=_BACKOFF_MS,
        )

    async def committed(self, group: str, topic: str, partitions: Sequence[int]) -> dict[int, tuple[int, str]]:
        """Committed `(offset, metadata)` of `group` by partition; a partition without a commit is absent."""
        admin = AIOKafkaAdminClient(
            bootstrap_servers=self.settings.bootstrap,
            client_id=self.client_id,
            request_timeout_ms=int(self.settings.call_timeout_s * 1000),
        )
        timeout = self.settings.call_timeout_s
        wanted = [TopicPartition(self.full(topic), p) for p in partitions]
        try:
            await started(admin.start, self.settings.bootstrap, timeout)
            found = await within(timeout, f"for the offsets of {group}", committed_offsets(admin, group, wanted))
        except KafkaError as error:
            raise StreamsError(f"the offsets of {group} cannot be read: {error}") from error
        finally:
            await close(admin.close(), timeout)
        return {tp.partition: (offset.offset, offset.metadata) for tp, offset in found.items() if offset.offset >= 0}


# A group's id comes once for each of its rollouts, and the hash is a Python loop over its bytes.
_partition_of: Final = lru_cache(4096)(partition_of)


async def enqueue(log: Log, producer: AIOKafkaProducer, output: Output) -> Awaitable[Any]:
    """Hand `output` to `producer` under a `send` span; await the result for the delivery."""
    with tracing.span(names.send(output.topic), cause=output.cause, links=output.links, kind=tracing.SpanKind.PRODUCER):
        delivery: Awaitable[Any] = await producer.send(
            log.full(output.topic),
            value=encode(output.event),
            key=None if output.key is None else output.key.encode(),
            partition=log.partition(output),
            headers=log.headers(output),
        )
    return delivery


class Writer:
    """Writes events at least once. Use as an async context."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._producer = log.producer()

    async def __aenter__(self) -> "Writer":
        settings = self._log.settings
        try:
            await started(self._producer.start, settings.bootstrap, settings.call_timeout_s)
        except BaseException:
            await stop_producer(self._producer, ABANDON_S)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await stop_producer(self._producer, 5.0)

    async def write(self, output: Output) -> Ref:
        """Write one event and wait until the broker has it. DeliveryError, BrokerAwayError."""
        timeout = self._log.settings.call_timeout_s
        try:
            async with asyncio.timeout(timeout):
                metadata = await owned(self._deliver(output), f"the delivery of a record of {output.topic}")
        except TimeoutError as error:
            raise BrokerAwayError(f"for the broker to take a record of {output.topic}", timeout) from error
        except KafkaError as error:
            raise DeliveryError(f"the broker did not take a record of {output.topic}: {error}") from error
        return Ref(output.topic, metadata.partition, metadata.offset)

    async def _deliver(self, output: Output) -> Any:
        return await (await enqueue(self._log, self._producer, output))
