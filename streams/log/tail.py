"""The tail of a topic, read back at start, as a stage's own outputs: numbers continue, closed groups stay closed."""

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
    """The newest records of `topic`: those of the last `horizon_s` seconds, or about the `newest` of each partition.

    `holding`: a tail without an event for which it is true is read from further back, however much was written since.
    """

    topic: str
    horizon_s: float | None = None
    newest: int | None = None
    holding: Callable[[Event], bool] | None = None


async def read_tail(
    log: Log, tail: Tail, partition: int | None, now_s: float, wanted: Callable[[Event], bool] = lambda _: True
) -> list[tuple[Event, Record]]:
    """The `wanted` events, in log order by partition; `partition` None reads all. Nothing else is held in memory.

    Call it once the predecessor has been fenced, so that nothing is written to it any more. DeadlineError.
    """
    partitions = list(log.partitions(tail.topic)) if partition is None else [partition]
    holding = tail.holding
    while True:
        first = await _starts(log, tail, partitions, now_s)
        found: list[tuple[Event, Record]] = []
        holds = tail.newest is None or holding is None or not any(first.values())

        def take(record: Record, found: list[tuple[Event, Record]] = found) -> None:
            nonlocal holds
            if (event := _event(record)) is not None:
                holds = holds or (holding is not None and holding(event))
                if wanted(event):
                    found.append((event, record))

        await _read(log, {(tail.topic, p): first[p] for p in partitions}, take)
        if holds:
            return found
        tail = replace(tail, newest=_FURTHER * (tail.newest or 1))


async def offsets_at_tail(log: Log, tail: Tail, topic: str, partitions: Sequence[int], now_s: float) -> dict[int, int]:
    """By partition of `topic` the first offset that is no older than `tail`; empty where the tail's topic is empty."""
    if not partitions:
        return {}
    async with Reader(log, {(tail.topic, p): None for p in partitions}) as reader:
        if not any((await reader.ends()).values()):
            return {}
    logger.warning("the offsets that were committed of %s are no longer on the broker", topic)
    found = await _starts(log, Tail(topic, tail.horizon_s, tail.newest), partitions, now_s)
    return {partition: offset or 0 for partition, offset in found.items()}


async def _starts(log: Log, tail: Tail, partitions: Sequence[int], now_s: float) -> dict[int, int | None]:
    timeout = log.settings.call_timeout_s
    full = log.full(tail.topic)
    async with Reader(log, {(tail.topic, p): None for p in partitions}) as reader:
        ends = await reader.ends()
        if tail.horizon_s is None:
            # Transaction markers take offsets too, so twice as many offsets hold at least as many records.
            back = 2 * (tail.newest or 0)
            return {p: max(0, ends[(tail.topic, p)] - back) for p in partitions}
        since_ms = int((now_s - tail.horizon_s) * 1000)
        found = await within(
            timeout,
            f"for the time index of {full}",
            reader.offsets_for_times({TopicPartition(full, p): since_ms for p in partitions}),
        )
    return {
        tp.partition: ends[(tail.topic, tp.partition)] if entry is None else entry.offset for tp, entry in found.items()
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
