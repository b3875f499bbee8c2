"""Reading topic history for tools: synchronous, streaming, bounded by the end offsets of the call."""

from collections.abc import Iterator
from typing import Final, Literal

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from schemas.topics import topic as catalogue_topic
from streams.errors import DeadlineError, StreamsError
from streams.record import Record

_IDLE_S: Final = 30.0
_POLL_S: Final = 0.5


def read_topic(
    bootstrap: str,
    run: str,
    topic: str,
    *,
    since_s: float | None = None,
    until_s: float | None = None,
    isolation: Literal["read_committed", "read_uncommitted"] = "read_committed",
) -> Iterator[Record]:
    """Every record of `topic` (short name) up to the end offsets of now, in log order by partition.

    `since_s` and `until_s` are unix times, half open. StreamsError: no broker, no such topic. DeadlineError: it stalls.
    """
    full = catalogue_topic(topic).on(run)
    try:
        consumer = KafkaConsumer(
            bootstrap_servers=bootstrap,
            isolation_level=isolation,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            group_id=None,
            max_partition_fetch_bytes=8 << 20,
            max_poll_records=2000,
        )
    except KafkaError as error:
        raise StreamsError(f"no broker answers at {bootstrap}: {error}") from error
    try:
        yield from _read(consumer, full, topic, since_s, until_s)
    except KafkaError as error:
        raise StreamsError(f"topic {full} cannot be read: {error}") from error
    finally:
        consumer.close()


def _read(
    consumer: KafkaConsumer, full: str, topic: str, since_s: float | None, until_s: float | None
) -> Iterator[Record]:
    numbers = consumer.partitions_for_topic(full)
    if not numbers:
        raise StreamsError(f"topic {full} is not on the broker")
    partitions = [TopicPartition(full, number) for number in sorted(numbers)]
    consumer.assign(partitions)
    ends = consumer.end_offsets(partitions)
    if since_s is None:
        consumer.seek_to_beginning(*partitions)
    else:
        found = consumer.offsets_for_times({tp: int(since_s * 1000) for tp in partitions})
        for tp in partitions:
            consumer.seek(tp, found[tp].offset if found.get(tp) else ends[tp])
    idle_s = 0.0
    open_partitions = {tp for tp in partitions if consumer.position(tp) < ends[tp]}
    while open_partitions:
        batches = consumer.poll(timeout_ms=int(_POLL_S * 1000))
        idle_s = 0.0 if batches else idle_s + _POLL_S
        if idle_s > _IDLE_S:
            raise DeadlineError(f"for records of {full}", _IDLE_S)
        for tp, messages in batches.items():
            for message in messages:
                if message.offset < ends[tp] and (until_s is None or message.timestamp / 1000 < until_s):
                    yield _record(topic, message)
        open_partitions = {tp for tp in open_partitions if consumer.position(tp) < ends[tp]}


def _record(topic: str, message: object) -> Record:
    return Record(
        topic=topic,
        partition=message.partition,  # type: ignore[attr-defined]
        offset=message.offset,  # type: ignore[attr-defined]
        key=message.key,  # type: ignore[attr-defined]
        value=message.value or b"",  # type: ignore[attr-defined]
        headers={name: header or b"" for name, header in message.headers},  # type: ignore[attr-defined]
        time_s=message.timestamp / 1000,  # type: ignore[attr-defined]
    )
