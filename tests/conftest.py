"""Brokers for tests: one of each kind for the whole session, and topics of its own for every test."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from typing import Literal

import pytest
from hypothesis import HealthCheck, settings

from streams.broker import Broker, BrokerSettings, open_broker
from streams.broker.jars import kafka_obstacle
from streams.log.admin import Admin, TopicSpec
from tests.simulated_run import SyntheticRun, simulate

EXTERNAL = os.environ.get("EACHPROMPT_TEST_BOOTSTRAP", "")
"""Address of a cluster that the contract suite runs against as well, as kind `external`."""

KINDS = ["kafka", "embedded", *(["external"] if EXTERNAL else [])]

MakeTopic = Callable[..., str]

# No example is late on a machine that is busy with other things, and none is drawn by chance: what fails here failed
# before. `pytest --hypothesis-profile explore` draws others each time.
_UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same everywhere", _UNTIMED, derandomize=True)
settings.register_profile("explore", _UNTIMED)
settings.load_profile("same everywhere")


def settings_for(kind: Literal["kafka", "embedded", "external"]) -> BrokerSettings:
    """Settings of a test's broker; skips the test where Kafka cannot run."""
    if kind == "external":
        return BrokerSettings(kind="external", bootstrap_servers=EXTERNAL)
    settings = BrokerSettings(kind=kind, ephemeral=kind == "embedded", heap_mib=512)
    if kind == "kafka" and (obstacle := kafka_obstacle(settings)) is not None:
        pytest.skip(f"Apache Kafka cannot run: {obstacle}")
    return settings


@pytest.fixture(scope="session")
def kafka_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A running Apache Kafka, shared by the session's tests."""
    with open_broker(settings_for("kafka"), tmp_path_factory.mktemp("kafka")) as broker:
        yield broker


@pytest.fixture(scope="session")
def embedded_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A running embedded broker, shared by the session's tests: quick, and never for durability."""
    with open_broker(settings_for("embedded"), tmp_path_factory.mktemp("embedded")) as broker:
        yield broker


@pytest.fixture(scope="session")
def external_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """The cluster of EACHPROMPT_TEST_BOOTSTRAP."""
    with open_broker(settings_for("external"), tmp_path_factory.mktemp("external")) as broker:
        yield broker


@pytest.fixture(params=KINDS)
def broker(request: pytest.FixtureRequest) -> Broker:
    """A running broker of each kind in turn."""
    found: Broker = request.getfixturevalue(f"{request.param}_broker")
    return found


@pytest.fixture
def prefix() -> str:
    """A name that no other test uses: for topics, groups and transactional ids."""
    return f"t{uuid.uuid4().hex[:10]}"


@pytest.fixture
def make_topic(broker: Broker, prefix: str) -> MakeTopic:
    """`make_topic("name", partitions=2, cleanup="compact")` makes a topic of this test and returns its full name."""

    def make(name: str, partitions: int = 1, **spec: object) -> str:
        with Admin(broker.bootstrap) as admin:
            admin.create_topics([TopicSpec(f"{prefix}.{name}", partitions, **spec)])  # type: ignore[arg-type]
        return f"{prefix}.{name}"

    return make


@pytest.fixture(scope="session")
def simulated() -> Callable[..., SyntheticRun]:
    """The simulator of a whole run's records."""
    return simulate
