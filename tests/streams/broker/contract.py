"""Clients and deadlines of the contract suite."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.errors import KafkaError

from streams.broker import Broker

pytestmark = pytest.mark.timeout(180)

# The shortest that each kind takes: the embedded broker refuses less than Kafka's default minimum.
SESSION_MS = {"kafka": 1500, "embedded": 6000, "external": 6000}

MakeTopic = Callable[..., str]


@contextlib.asynccontextmanager
async def producing(bootstrap: str, **settings: Any) -> AsyncIterator[Any]:
    """A started producer with the project's guarantees; stopped at the end even when the broker is gone."""
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", enable_idempotence=True, **settings)
    try:
        await asyncio.wait_for(producer.start(), 20)
        yield producer
    finally:
        with contextlib.suppress(KafkaError, TimeoutError):
            await asyncio.wait_for(producer.stop(), 10)
        # Where stopping ends in the error of a fenced producer, it leaves connections open, which whoever collects them
        # complains about: another test, or the end of them all.
        with contextlib.suppress(KafkaError, TimeoutError):
            await asyncio.wait_for(producer.client.close(), 10)


@contextlib.asynccontextmanager
async def consuming(bootstrap: str, *topics: str, **settings: Any) -> AsyncIterator[Any]:
    """A started read_committed consumer from the earliest offset, without automatic commits."""
    defaults = {"isolation_level": "read_committed", "enable_auto_commit": False, "auto_offset_reset": "earliest"}
    consumer = AIOKafkaConsumer(*topics, bootstrap_servers=bootstrap, **(defaults | settings))
    try:
        await asyncio.wait_for(consumer.start(), 20)
        yield consumer
    finally:
        await asyncio.wait_for(consumer.stop(), 40)


def patience_s(broker: Broker, gap_s: float) -> float:
    """How long to wait for what `broker` is to do: `gap_s` where it is known not to, and else for a busy machine."""
    return gap_s if broker.kind == "embedded" else 40.0


async def read(bootstrap: str, topic: str, count: int, deadline_s: float = 40, **settings: Any) -> list[Any]:
    """The first `count` records of a topic."""
    records: list[Any] = []
    async with asyncio.timeout(deadline_s), consuming(bootstrap, topic, **settings) as consumer:
        while len(records) < count:
            records.append(await consumer.getone())
    return records
