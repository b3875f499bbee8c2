"""The log of a run of its own on a test's broker: its topics, what is written to them, and what stands on them."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from schemas import TOPICS, Event, decode
from streams.broker import Broker
from streams.log.admin import TopicSpec, create_topics
from streams.log.clients import Log, LogSettings, Writer
from streams.log.tail import read_to_end
from streams.log.transaction import TransactionalWriter
from streams.record import Output, Record

NOWHERE = "127.0.0.1:1"
"""An address where no broker answers."""


def log_at(bootstrap: str = NOWHERE, run: str = "r", partitions: int = 1) -> Log:
    """Clients of that run, whose topics may not exist."""
    return Log(LogSettings(bootstrap, run, partitions), "test")


def new_run(broker: Broker, partitions: int = 1, run: str = "") -> Log:
    """A run with all its topics; named by chance unless `run` says how."""
    log = log_at(broker.bootstrap, run or f"r{uuid.uuid4().hex[:8]}", partitions)
    make_topics(log)
    return log


def make_topics(log: Log) -> None:
    """All topics of the run of `log`, as the command makes them."""
    create_topics(
        log.settings.bootstrap,
        [
            TopicSpec(topic.on(log.settings.run), log.settings.partitions if topic.sharded else 1, topic.cleanup)
            for topic in TOPICS.values()
        ],
    )


async def write(log: Log, *outputs: Output) -> None:
    """Each is acknowledged before the next is sent."""
    async with Writer(log) as writer:
        for output in outputs:
            await writer.write(output)


@asynccontextmanager
async def transactions(log: Log, name: str) -> AsyncIterator[TransactionalWriter]:
    """A writer by that id, closed however the test ends; behind it, everything that it committed can be read.

    Kafka says that a transaction is committed before its markers stand, and until then a reader does not see it;
    whoever fences its writer waits for them.
    """
    writer = TransactionalWriter(log, f"{log.settings.run}.{name}")
    try:
        await writer.open()
        yield writer
    finally:
        await writer.close()
    successor = TransactionalWriter(log, f"{log.settings.run}.{name}")
    try:
        await successor.open()
    finally:
        await successor.close()


async def records(log: Log, topic: str) -> list[Record]:
    """Everything that stands on a topic now, by partition."""
    return await read_to_end(log, {(topic, partition): None for partition in log.partitions(topic)})


async def everything(log: Log, topic: str) -> list[Event]:
    """The same, decoded."""
    return [decode(record.value) for record in await records(log, topic)]
