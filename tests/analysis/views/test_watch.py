"""Following a run on a real broker until it is done."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaProducer

from analysis.errors import AnalysisError
from analysis.history.run_log import RunLog
from analysis.views.live_figures import Snapshot
from analysis.views.watch import TOPICS, Watcher
from deploy.cli.commands.demo import DEMO
from deploy.config.run import RunConfig, load
from deploy.local.session import create_run_topics
from schemas import TOPICS as CATALOGUE
from streams.broker import open_broker

STEPS, HELD_BACK = 3, 6


@pytest.fixture
async def followed(tmp_path: Path, simulated: Callable[..., Any]) -> AsyncIterator[tuple[RunConfig, str]]:
    """A finished run of three steps, on a broker that is up."""
    overrides = ["broker.kind=embedded", "run.partitions=2", f"run.steps={STEPS}"]
    config = load(DEMO, directory=tmp_path, overrides=overrides)
    with open_broker(config.broker.build(), tmp_path) as broker:
        create_run_topics(config, broker.bootstrap)
        producer = KafkaProducer(bootstrap_servers=broker.bootstrap, acks="all")
        for ref, value in simulated(steps=STEPS).records:
            if ref.topic in TOPICS:
                full = CATALOGUE[ref.topic].on(config.run.id)
                producer.send(full, value, str(ref.offset).encode(), partition=ref.partition)
        producer.flush(timeout=30)
        producer.close()
        yield config, broker.bootstrap


async def test_it_is_done_with_the_last_step_and_its_round(followed: tuple[RunConfig, str]) -> None:
    config, bootstrap = followed
    shown: list[Snapshot] = []
    history = await _watcher(config, bootstrap, shown).until_done(HELD_BACK, deadline_s=30)
    assert len(history.steps) == STEPS
    assert shown[-1].step == STEPS
    assert shown[-1].held_back is not None
    assert shown[-1].held_back[0] == STEPS


async def test_a_deadline_says_how_far_the_run_was(followed: tuple[RunConfig, str]) -> None:
    config, bootstrap = followed
    read: list[Snapshot] = []
    # All of it must be read by the deadline: a busy machine gets a later one.
    for deadline_s in (3, 12, 48):
        with pytest.raises(AnalysisError) as caught:
            await _watcher(config, bootstrap, read).until_done(HELD_BACK + 1, deadline_s)
        if read and read[-1].held_back is not None and read[-1].held_back[0] == STEPS:
            break
    said = f"waited {deadline_s} s for the held-back round after step {STEPS} (6 of 7 groups are measured)"
    assert said in str(caught.value)


def _watcher(config: RunConfig, bootstrap: str, shown: list[Snapshot]) -> Watcher:
    return Watcher(RunLog(bootstrap, config.run.id), config.run.partitions, config.run.steps, shown.append)
