"""What every test may ask for: a broker of the session, topics of its own, the simulator of a run."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

from streams.broker import Broker
from streams.log.admin import Admin, TopicSpec
from tests.brokers import broker, embedded_broker, external_broker, kafka_broker, log_broker
from tests.simulated_run import SyntheticRun, simulate

__all__ = ["broker", "embedded_broker", "external_broker", "kafka_broker", "log_broker"]

MakeTopic = Callable[..., str]

# No example is late on a machine that is busy with other things, and none is drawn by chance: what fails here failed
# before. `pytest --hypothesis-profile explore` draws others each time.
_UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same everywhere", _UNTIMED, derandomize=True)
settings.register_profile("explore", _UNTIMED)
settings.load_profile("same everywhere")


GROUPS = {"tests/e2e": "engine", "tests/producers/rollouts": "engine", "tests/learner": "learner"}
"""Folders whose tests run in one process where several run side by side: they share ranks, or start engines, and two
engines at a time take more memory than a small machine has. Of the others the modules are kept together. The group
that takes longest stands first."""


class GroupScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Deals tests out by group: those of `GROUPS` in their order, and then the modules as they are collected.

    xdist's own `--dist loadgroup` writes the group into `_nodeid`, which pytest 9.2 no longer reads: every test went
    its own way, and two processes each started the engine that a module shares.
    """

    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.partition("::")[0]
        return next((group for folder, group in GROUPS.items() if module.startswith(f"{folder}/")), module)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> GroupScheduling:
    """For `pytest -n 2`, whatever `--dist` says.

    By the number of their tests, xdist's default, the modules of one test that takes a minute came last of all, when
    the other process had nothing left to do.
    """
    config.option.loadscopereorder = False
    return GroupScheduling(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Side by side, the longest groups begin first. In one process, tests run in the order of their files."""
    if hasattr(config, "workerinput"):
        folders = [f"{folder}/" for folder in GROUPS]
        items.sort(key=lambda item: next((k for k, f in enumerate(folders) if item.nodeid.startswith(f)), len(folders)))


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
