"""Plain reading: every record of some topics from a start on, indefinitely."""

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Literal

from schemas import Event, UndecodableError
from streams.errors import Poison
from streams.log.dead_letters import event_of
from streams.log.reader import Reader
from streams.log.stall import StallDetector
from streams.record import Record
from streams.runtime.service_context import ServiceContext

logger = logging.getLogger(__name__)

_POLL_S: Final = 0.2

Listener = Callable[[Event, Record], Awaitable[None] | None]


async def follow(
    service: ServiceContext,
    topics: Sequence[str],
    *,
    on: Listener,
    start: Literal["earliest", "latest"] = "earliest",
    caught_up: asyncio.Event | None = None,
    on_unreadable: Callable[[Record, str], None] | None = None,
) -> None:
    """Call `on` for every record of `topics`, in log order by partition, until cancelled.

    `caught_up` is set when everything that was on the log at the start has been handed over. Records that are no event
    of their topic are skipped and counted, and `on_unreadable` gets the reason: the stage that consumes the topic
    writes the dead letter, or the dispatcher where no stage does.
    """
    log = service.log
    keys = [(topic, partition) for topic in topics for partition in log.partitions(topic)]
    positions: dict[tuple[str, int], int | None] = dict.fromkeys(keys)
    async with Reader(log, positions) as reader:
        ends = await reader.ends()
        if start == "latest":
            reader.seek(ends)
        behind = dict(ends) if start == "earliest" else {}
        skipped = 0
        stall = StallDetector()
        with service.loop(f"reads {', '.join(topics)}") as loop:
            while True:
                loop.turn()
                if caught_up is not None and not caught_up.is_set():
                    behind = {key: end for key, end in behind.items() if await reader.position(*key) < end}
                    if not behind:
                        caught_up.set()
                records = await reader.poll(_POLL_S)
                if not records:
                    await stall.check(reader)
                for record in records:
                    try:
                        event = event_of(record)
                    except (UndecodableError, Poison) as error:
                        skipped += 1
                        service.gauge("undecodable_skipped", skipped)
                        logger.warning("skipped %s: %s", record.ref, error)
                        if on_unreadable is not None:
                            on_unreadable(record, str(error))
                        continue
                    result = on(event, record)
                    if inspect.isawaitable(result):
                        with loop.resting():  # what a listener does may take minutes: weights are loaded
                            await result
