"""The topics that stages read and write, and their clients."""

import pytest

from streams.broker import Broker
from streams.log.admin import Admin, TopicSpec
from streams.log.clients import Log, LogSettings
from tests.streams.stages.stage_run import PARTITIONS


@pytest.fixture
def run(broker: Broker, prefix: str) -> str:
    specs = [
        TopicSpec(f"{prefix}.{name}", PARTITIONS if name in ("scores", "groups") else 1)
        for name in ("scores", "groups", "steps", "dead-letters")
    ]
    with Admin(broker.bootstrap) as admin:
        admin.create_topics(specs)
    return prefix


@pytest.fixture
def log(broker: Broker, run: str) -> Log:
    return Log(LogSettings(broker.bootstrap, run, PARTITIONS), "test")
