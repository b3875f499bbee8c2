"""The topics that stages read and write, and their clients."""

import pytest

from streams.broker import Broker
from streams.log.clients import Log
from tests.run_logs import new_run
from tests.streams.stages.stage_run import PARTITIONS


@pytest.fixture
def log(broker: Broker, prefix: str) -> Log:
    return new_run(broker, PARTITIONS, prefix)


@pytest.fixture
def run(log: Log) -> str:
    return log.settings.run
