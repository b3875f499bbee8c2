"""A broker that comes back: whoever asks it meanwhile waits for an answer, and takes no error for one."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from streams.broker import BrokerSettings
from streams.broker.jars import kafka_obstacle
from streams.broker.kafka import KafkaBroker
from streams.broker.ports import free_port
from streams.errors import DeadlineError
from streams.log.admin import TopicSpec, create_topics
from streams.log.clients import Log, LogSettings, Writer
from streams.log.reader import Reader

COMMITS = 600


@pytest.fixture
def kafka(tmp_path: Path) -> Iterator[KafkaBroker]:
    settings = BrokerSettings(kind="kafka", heap_mib=512)
    if (obstacle := kafka_obstacle(settings)) is not None:
        pytest.skip(f"Apache Kafka cannot run: {obstacle}")
    with KafkaBroker(settings, tmp_path) as broker:
        create_topics(broker.bootstrap, [TopicSpec("r.scores", 4)])
        yield broker


@pytest.mark.kafka
async def test_a_coordinator_that_still_loads_the_group_is_asked_again(kafka: KafkaBroker) -> None:
    """aiokafka takes its error for an empty answer, with which a stage would begin at the start of its topic again."""
    log = Log(LogSettings(kafka.bootstrap, "r", 4), "test")
    positions: dict[tuple[str, int], int | None] = {("scores", p): 0 for p in range(4)}
    async with Reader(log, positions, "r.stage") as reader:
        for offset in range(1, COMMITS + 1):  # many, so that loading them takes a moment
            await reader.commit("scores", {p: (offset, "x" * 2000) for p in range(4)})
    await asyncio.to_thread(kafka.kill)
    # These start while the broker is down, and get their answer as soon as there is one.
    asking = [asyncio.create_task(log.committed("r.stage", "scores", range(4))) for _ in range(8)]
    await asyncio.to_thread(kafka.start)
    for found in await asyncio.gather(*asking):
        assert {p: offset for p, (offset, _) in found.items()} == dict.fromkeys(range(4), COMMITS)


async def test_a_broker_that_never_comes_is_named() -> None:
    # Of the ports that the system gives out, one could connect to itself.
    port = free_port()
    log = Log(LogSettings(f"127.0.0.1:{port}", "r", 1, call_timeout_s=0.5), "test")
    with pytest.raises(DeadlineError, match=rf"waited 0\.5 s for the broker at 127\.0\.0\.1:{port}"):
        async with Writer(log):
            pass
    with pytest.raises(DeadlineError, match="for the broker"):
        await log.committed("g", "scores", [0])
