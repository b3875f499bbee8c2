"""Keys of earlier versions: read, with one line that names the new one."""

import logging
import operator
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.cli.commands.demo import DEMO
from deploy.config.kept import adopt
from deploy.config.old_keys import RENAMED, current, current_key
from deploy.config.run import load, toml_text
from deploy.errors import ConfigError
from learner.objective_settings import EspoSettings, GspoSettings, NoCorrection, TisSettings

SCALARS = st.one_of(st.booleans(), st.integers(-(2**62), 2**62), st.floats(allow_nan=False), st.text())
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3), max_leaves=6)
TABLES = st.recursive(
    st.dictionaries(st.text(min_size=1), VALUES, max_size=4),
    lambda inner: st.dictionaries(st.text(min_size=1), inner | VALUES, max_size=4),
    max_leaves=8,
)


def learner(tmp_path: Path, *overrides: str) -> Any:
    return load(DEMO, directory=tmp_path, overrides=[f"learner.{override}" for override in overrides]).service(
        "learner"
    )


@pytest.mark.parametrize(
    ("old", "new", "value"),
    [
        ("old=rollout", "old_policy", "rollout"),
        ("recompute=true", "activation_checkpointing", True),
        ("offload=true", "optimizer.cpu_offload", True),
        ("copies=2", "parallel.dp_replicate", 2),
        ("learning_rate=1e-5", "optimizer.learning_rate", 1e-5),
        ("warmup_steps=1", "schedule.warmup_steps", 1),
        ("keep_checkpoints=5", "checkpoint.keep", 5),
        ("publish_every=2", "publish.every", 2),
        ("fp8_recipe=delayed", "precision.fp8_recipe", "delayed"),
    ],
)
def test_an_old_key_is_read_and_its_new_name_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, old: str, new: str, value: object
) -> None:
    with caplog.at_level(logging.WARNING):
        found = learner(tmp_path, "objective=grpo", "correction=none", old)
    assert operator.attrgetter(new)(found) == value
    assert f"learner.{old.partition('=')[0]} is now learner.{new}" in caplog.messages


def test_the_file_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    path = tmp_path / "old.toml"
    path.write_text(
        "[run]\nsamples = 4\n[prompts]\npath = 'p.jsonl'\n[model]\npath = 'm'\n"
        "[learner]\nlearning_rate = 1e-5\nschedule = 'cosine'\nobjective = 'gspo'\nobjective_settings = "
        "{ clip_low = 0.1 }\ncorrection = 'tis'\n"
        "correction_settings = { high = 3.0 }\n"
    )
    config = load(path, directory=tmp_path)
    assert config.run.group_size == 4
    assert config.service("learner").objective == GspoSettings(clip_low=0.1)
    assert config.service("learner").correction == TisSettings(high=3.0)
    assert config.service("learner").optimizer.learning_rate == 1e-5
    assert config.service("learner").schedule.kind == "cosine"


def test_a_file_that_an_earlier_version_wrote_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    keys = [key.removeprefix("learner.") for key in RENAMED if key.startswith("learner.")]
    with caplog.at_level(logging.WARNING):
        current({"learner": {**dict.fromkeys(keys, 1), "objective_settings": {"alpha": 0.1}}})
    (line,) = caplog.messages
    assert f"{len(keys) + 1} keys of an earlier version" in line
    assert "learner.old is now learner.old_policy" in line


def test_an_old_key_beside_its_new_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "both.toml"
    path.write_text("[run]\nsamples = 4\ngroup_size = 8\n[prompts]\npath = 'p.jsonl'\n")
    with pytest.raises(ConfigError, match=r"run\.samples is 4, but run\.group_size, its new name, is given too"):
        load(path, directory=tmp_path)


def test_a_kind_alone_is_short_for_its_table(tmp_path: Path) -> None:
    assert learner(tmp_path, "objective.alpha=0.5").objective == EspoSettings(alpha=0.5)
    assert learner(tmp_path, "objective=gspo", "objective.clip_low=0.1").objective == GspoSettings(clip_low=0.1)
    assert learner(tmp_path).correction == TisSettings()
    assert learner(tmp_path, "correction=none").correction == NoCorrection()
    found = learner(tmp_path, "schedule.warmup_steps=1", "schedule=constant", "precision=bf16")
    assert (found.schedule.kind, found.schedule.warmup_steps, found.precision.compute) == ("constant", 1, "bf16")


def test_the_resolved_configuration_is_the_same_again(tmp_path: Path) -> None:
    config = load(DEMO, directory=tmp_path, overrides=["learner.objective.boundaries=[0.5, 0.8]"])
    adopt(config)
    assert load(None, directory=tmp_path).resolved() == config.resolved()
    assert msgspec.to_builtins(load(None, directory=tmp_path).service("learner"))["objective"]["boundaries"] == (
        0.5,
        0.8,
    )


@given(TABLES)
def test_what_is_written_reads_back(tables: dict[str, Any]) -> None:
    assert tomllib.loads(toml_text(tables, "a comment\nof two lines")) == tables


def test_what_is_none_is_left_out() -> None:
    assert tomllib.loads(toml_text({"a": {"b": None, "c": [{"d": 1, "e": None}]}})) == {"a": {"c": [{"d": 1}]}}


def test_a_setting_given_in_the_old_table_and_the_new_one_is_an_error() -> None:
    tables = {"learner": {"objective": {"kind": "espo", "alpha": 1}, "objective_settings": {"alpha": 2}}}
    with pytest.raises(ConfigError, match=r"^learner\.objective_settings\.alpha is 2, but learner\.objective\.alpha, "):
        current(tables)


def test_an_old_key_of_the_objective_in_set_names_its_new_key() -> None:
    assert current_key("learner.objective_settings.alpha") == "learner.objective.alpha"
