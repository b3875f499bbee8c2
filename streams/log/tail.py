"""A stage's own recent outputs, read back at start: numbers that continue, groups that are closed."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from aiokafka.structs import TopicPartition

from schemas import Event, UndecodableError, decode
from streams.errors import DeadlineError
from streams.log.clients import Log, within
from streams.log.reader import Reader
from streams.record import Record

logger = logging.getLogger(__name__)

_POLL_S: Final = 0.2
_DEADLINE_S: Final = 120.0
_FURTHER: Final = 8


@dataclass(frozen=True)
class Tail:
    """Own outputs on `topic`: those newer than `horizon_s`, or about the last `tail` ones of each partition.

    `holding`: a tail without such an event is read from further back, whatever others wrote behind it.
    """

    topic: str
    horizon_s: float | None = None
    tail: int | None = None
    holding: Callable[[Event], bool] | None = None


async def read_tail(
    log: Log, recall: Tail, partition: int | None, now_s: float, wanted: Callable[[Event], bool] = lambda _: True
) -> list[tuple[Event, Record]]:
    """The `wanted` events, in log order by partition; `partition` None reads all. Nothing else is held in memory.

    Call it after the predecessor was fenced. DeadlineError.
    """
    partitions = list(log.partitions(recall.topic)) if partition is None else [partition]
    holding = recall.holding
    while True:
        first = await _starts(log, recall, partitions, now_s)
        found: list[tuple[Event, Record]] = []
        holds = recall.tail is None or holding is None or not any(first.values())

        def take(record: Record, found: list[tuple[Event, Record]] = found) -> None:
            nonlocal holds
            if (event := _event(record)) is not None:
                holds = holds or (holding is not None and holding(event))
                if wanted(event):
                    found.append((event, record))

        await _read(log, {(recall.topic, p): first[p] for p in partitions}, take)
        if holds:
            return found
        recall = replace(recall, tail=_FURTHER * (recall.tail or 1))


async def passed_over(log: Log, recall: Tail, topic: str, partitions: Sequence[int], now_s: float) -> dict[int, int]:
    """The first offset of `topic` that is no older than what is recalled; empty where nothing was ever written."""
    if not partitions:
        return {}
    async with Reader(log, {(recall.topic, p): None for p in partitions}) as reader:
        if not any((await reader.ends()).values()):
            return {}
    logger.warning("what was committed of %s is not on the broker any more", topic)
    found = await _starts(log, Tail(topic, recall.horizon_s, recall.tail), partitions, now_s)
    return {partition: offset or 0 for partition, offset in found.items()}


async def _starts(log: Log, recall: Tail, partitions: Sequence[int], now_s: float) -> dict[int, int | None]:
    timeout = log.settings.call_timeout_s
    full = log.full(recall.topic)
    async with Reader(log, {(recall.topic, p): None for p in partitions}) as reader:
        ends = await reader.ends()
        if recall.horizon_s is None:
            # Transaction markers take offsets too, so twice the tail is read to have at least the tail.
            back = 2 * (recall.tail or 0)
            return {p: max(0, ends[(recall.topic, p)] - back) for p in partitions}
        since_ms = int((now_s - recall.horizon_s) * 1000)
        found = await within(
            timeout,
            f"for the time index of {full}",
            reader.offsets_for_times({TopicPartition(full, p): since_ms for p in partitions}),
        )
    return {
        tp.partition: ends[(recall.topic, tp.partition)] if entry is None else entry.offset
        for tp, entry in found.items()
    }


async def read_to_end(log: Log, positions: dict[tuple[str, int], int | None]) -> list[Record]:
    """Every record from `positions` to the end offsets of now. DeadlineError."""
    records: list[Record] = []
    await _read(log, positions, records.append)
    return records


async def _read(log: Log, positions: dict[tuple[str, int], int | None], take: Callable[[Record], None]) -> None:
    started = time.monotonic()
    async with Reader(log, positions) as reader:
        ends = await reader.ends()
        while any([await reader.position(t, p) < end for (t, p), end in ends.items()]):
            if time.monotonic() - started > _DEADLINE_S:
                raise DeadlineError(f"for the end of {sorted(positions)[0][0]}", _DEADLINE_S)
            for record in await reader.poll(_POLL_S):
                if record.offset < ends[(record.topic, record.partition)]:
                    take(record)


def _event(record: Record) -> Event | None:
    try:
        return decode(record.value)
    except UndecodableError:
        return None
