"""Reading assigned partitions from stated positions, in log order by partition, with a deadline on every call."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from aiokafka.errors import KafkaError
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from streams.cancellation import owned
from streams.errors import BrokerAwayError, StreamsError
from streams.log.aiokafka_fixes import ABANDON_S, close, pace
from streams.log.clients import FETCH_BYTES, Log, within
from streams.log.retry import started
from streams.record import Record


class Reader:
    """Reads assigned partitions from stated positions. Use as an async context.

    `positions` maps (short topic, partition) to the first offset, or None for the earliest.
    """

    def __init__(
        self,
        log: Log,
        positions: Mapping[tuple[str, int], int | None],
        group: str | None = None,
        fetch_bytes: int = FETCH_BYTES,
    ) -> None:
        self._log = log
        self._positions = positions
        self._group = group
        self._consumer = log.consumer(group, fetch_bytes=fetch_bytes)

    async def __aenter__(self) -> "Reader":
        timeout = self._log.settings.call_timeout_s
        assigned = {
            TopicPartition(self._log.full(topic), partition): first
            for (topic, partition), first in self._positions.items()
        }
        self._consumer.assign(list(assigned))
        try:
            await started(self._consumer.start, self._log.settings.bootstrap, timeout)
            pace(self._consumer)
            for partition, first in assigned.items():
                if first is None:
                    await within(
                        timeout, f"for the start of {partition.topic}", self._consumer.seek_to_beginning(partition)
                    )
                else:
                    self._consumer.seek(partition, first)
        except BaseException:
            await close(self._consumer.stop(), ABANDON_S)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await close(self._consumer.stop(), 5.0)

    async def poll(self, timeout_s: float, max_records: int | None = None) -> list[Record]:
        """Up to `max_records` records, in log order by partition; empty when none came within `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s + self._log.settings.call_timeout_s):
                getting = self._consumer.getmany(timeout_ms=int(timeout_s * 1000), max_records=max_records)
                batches = await owned(getting, "a read of the log")
        except TimeoutError as error:
            raise BrokerAwayError("for records", timeout_s + self._log.settings.call_timeout_s) from error
        except KafkaError as error:
            raise StreamsError(f"records cannot be read: {type(error).__name__} {error}") from error
        return [record_of(self._log, message) for messages in batches.values() for message in messages]

    async def ends(self) -> dict[tuple[str, int], int]:
        """The offset after the last committed record of each assigned partition, now."""
        timeout = self._log.settings.call_timeout_s
        try:
            found = await within(
                timeout, "for the end offsets", self._consumer.end_offsets(list(self._consumer.assignment()))
            )
        except KafkaError as error:
            raise StreamsError(f"end offsets cannot be read: {error}") from error
        return {(self._log.short(tp.topic), tp.partition): offset for tp, offset in found.items()}

    async def starts(self) -> dict[tuple[str, int], int]:
        """The first offset that retention has left of each assigned partition, now."""
        timeout = self._log.settings.call_timeout_s
        try:
            found = await within(
                timeout, "for the start offsets", self._consumer.beginning_offsets(list(self._consumer.assignment()))
            )
        except KafkaError as error:
            raise StreamsError(f"start offsets cannot be read: {error}") from error
        return {(self._log.short(tp.topic), tp.partition): offset for tp, offset in found.items()}

    async def position(self, topic: str, partition: int) -> int:
        """The next offset that will be read; it passes transaction markers."""
        tp = TopicPartition(self._log.full(topic), partition)
        offset: int = await within(self._log.settings.call_timeout_s, "for a position", self._consumer.position(tp))
        return offset

    async def positions(self) -> dict[tuple[str, int], int]:
        """`position` of every assigned partition. Everything below was returned by `poll`, or will never come."""
        return {key: await self.position(*key) for key in self._positions}

    async def offsets_for_times(self, times_ms: Mapping[TopicPartition, int]) -> Mapping[TopicPartition, Any]:
        """The first offset at or after each time, None where there is none."""
        found: Mapping[TopicPartition, Any] = await self._consumer.offsets_for_times(times_ms)
        return found

    def seek(self, offsets: Mapping[tuple[str, int], int]) -> None:
        """Read on from these offsets."""
        for (topic, partition), offset in offsets.items():
            self._consumer.seek(TopicPartition(self._log.full(topic), partition), offset)

    async def commit(self, topic: str, offsets: Mapping[int, tuple[int, str]]) -> None:
        """Commit `(offset, metadata)` by partition for the reader's group."""
        timeout = self._log.settings.call_timeout_s
        full = self._log.full(topic)
        entries = {TopicPartition(full, p): OffsetAndMetadata(o, m) for p, (o, m) in offsets.items()}
        try:
            await within(timeout, f"for the commit of {self._group}", self._consumer.commit(entries))
        except KafkaError as error:
            raise StreamsError(f"offsets of {self._group} cannot be committed: {error}") from error

    def pause(self, topic: str, partitions: Sequence[int]) -> None:
        """Stop fetching these partitions until `resume`."""
        self._consumer.pause(*[TopicPartition(self._log.full(topic), p) for p in partitions])

    def resume(self, topic: str, partitions: Sequence[int]) -> None:
        """Fetch these partitions again."""
        self._consumer.resume(*[TopicPartition(self._log.full(topic), p) for p in partitions])


def record_of(log: Log, message: Any) -> Record:
    """A client's message as a Record."""
    return Record(
        topic=log.short(message.topic),
        partition=message.partition,
        offset=message.offset,
        key=message.key,
        value=message.value or b"",
        headers={name: header or b"" for name, header in message.headers},
        time_s=message.timestamp / 1000,
    )
