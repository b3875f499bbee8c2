"""The digest of the settings that a step depends on: the same for what is only kept or waited for, else another."""

from pathlib import Path

import pytest

from deploy.cli.commands.demo import DEMO
from deploy.config.digest import UNTRAINED, config_digest, trained_settings
from deploy.config.kept import adopt
from deploy.config.run import load


def digest(*overrides: str) -> str:
    return config_digest(trained_settings(load(DEMO, overrides=overrides)))


def test_it_is_stable_and_the_same_for_what_run_toml_reads_back_as(tmp_path: Path) -> None:
    config = load(DEMO, directory=tmp_path)
    adopt(config)
    assert digest() == config_digest(trained_settings(load(None, directory=tmp_path)))
    assert config_digest({"b.c": [1, 0.5], "a": "x", "d": None}) == config_digest({"a": "x", "b.c": [1, 0.5]})
    assert len({config_digest({"clip": clip}) for clip in (float("inf"), float("-inf"), 1.0, None)}) == 4
    assert config_digest({"a": 1}) == "sha256:015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"


@pytest.mark.parametrize(
    "override",
    [
        "run.id=other",
        "broker.port=9092",
        "replicas.rewards=2",
        "learner.checkpoint.every=3",
        "learner.parallel.heartbeat_s=2.0",
        "learner.publish.canary=false",
    ],
)
def test_where_things_are_kept_and_how_long_is_waited_is_no_part_of_it(override: str) -> None:
    assert digest(override) == digest()


@pytest.mark.parametrize(
    "override",
    [
        "learner.optimizer.learning_rate=0.5",
        "learner.objective.kind=grpo",
        "learner.schedule.decay_steps=17",
        "run.seed=7",
        "run.group_size=3",
        "run.ranks=1",
        "groups.normalise=none",
        "rewards.timeout_s=1.5",
        "dispatcher.sampling.max_tokens=3",
        "producer.precision=fp8",
    ],
)
def test_what_a_step_depends_on_is(override: str) -> None:
    assert digest(override) != digest()


def test_the_number_of_steps_counts_where_the_learning_rate_follows_it() -> None:
    assert digest("run.steps=7") != digest("run.steps=8")
    for fixed in ("learner.schedule.decay_steps=5", "learner.schedule.kind=constant"):
        assert digest("run.steps=7", fixed) == digest("run.steps=8", fixed)


def test_every_setting_that_is_left_out_exists() -> None:
    tables = load(DEMO).tables()
    for entry in UNTRAINED:
        table = tables
        for name in entry.split("."):
            assert name in table, entry
            table = table[name]
    assert trained_settings(load(DEMO))["learner.optimizer.learning_rate"] > 0
