"""Brokers for tests: one of each kind for the whole session, started when a test first asks for it.

A broker is shared by every test of the session: topics, groups and transactional ids carry the prefix of their test.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Literal

import pytest

from streams.broker import Broker, BrokerSettings, open_broker
from streams.broker.jars import kafka_obstacle

EXTERNAL = os.environ.get("EACHPROMPT_TEST_BOOTSTRAP", "")
"""Address of a cluster that the contract suite runs against as well, as kind `external`."""

KAFKA = pytest.param("kafka", marks=pytest.mark.kafka)
KINDS = [KAFKA, "embedded", *(["external"] if EXTERNAL else [])]

Kind = Literal["kafka", "embedded", "external"]


def settings_for(kind: Kind) -> BrokerSettings:
    """Settings of a test's broker; skips the test where Kafka cannot run."""
    if kind == "external":
        return BrokerSettings(kind="external", bootstrap_servers=EXTERNAL)
    settings = BrokerSettings(kind=kind, ephemeral=kind == "embedded", heap_mib=512)
    if kind == "kafka" and (obstacle := kafka_obstacle(settings)) is not None:
        pytest.skip(f"Apache Kafka cannot run: {obstacle}")
    return settings


def _running(kind: Kind, directories: pytest.TempPathFactory) -> Iterator[Broker]:
    with open_broker(settings_for(kind), directories.mktemp(kind)) as broker:
        yield broker


@pytest.fixture(scope="session")
def kafka_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A running Apache Kafka, shared by the session's tests."""
    yield from _running("kafka", tmp_path_factory)


@pytest.fixture(scope="session")
def embedded_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A running embedded broker, shared by the session's tests: quick, and never for durability."""
    yield from _running("embedded", tmp_path_factory)


@pytest.fixture(scope="session")
def external_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """The cluster of EACHPROMPT_TEST_BOOTSTRAP."""
    yield from _running("external", tmp_path_factory)


@pytest.fixture(scope="session")
def log_broker(embedded_broker: Broker) -> Broker:
    """The broker of a test that asks for one log and not for a kind of broker."""
    return embedded_broker


@pytest.fixture(params=KINDS)
def broker(request: pytest.FixtureRequest) -> Broker:
    """A running broker of each kind in turn."""
    found: Broker = request.getfixturevalue(f"{request.param}_broker")
    return found
