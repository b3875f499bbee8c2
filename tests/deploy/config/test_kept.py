"""No command puts another run's settings into a run directory, and what a run was started with is never lost."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from deploy.cli.commands.demo import DEMO
from deploy.config.identity import check_identity, fixed
from deploy.config.kept import adopt, in_words, kept_configurations
from deploy.config.run import RunConfig, load
from deploy.errors import ConfigError


def demo(directory: Path, *overrides: str) -> RunConfig:
    return load(DEMO, directory=directory, overrides=overrides)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("run.id=other", "which holds run demo and not other; allowed: that run's configuration, or another directory"),
        ("run.partitions=2", "run.partitions is 2; allowed: 4, with which run demo began, or another directory"),
        ('blobs.uri="s3://elsewhere/run"', 'blobs.uri is "s3://elsewhere/run"; allowed: "", with which run demo began'),
        ("broker.kind=external broker.bootstrap_servers=a:1", 'broker.kind is "external"; allowed: "local"'),
    ],
)
def test_what_makes_it_another_run_is_refused_and_nothing_is_written(tmp_path: Path, override: str, said: str) -> None:
    adopt(demo(tmp_path / "run"))
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(ConfigError) as raised:
        adopt(demo(tmp_path / "run", *override.split()))
    assert said in str(raised.value)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_the_directory_of_an_earlier_version_is_known_by_its_run_toml(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    adopt(demo(directory))
    shutil.rmtree(directory / "configurations")
    (directory / "identity.json").unlink()
    with pytest.raises(ConfigError, match="which holds run demo and not other"):
        adopt(demo(directory, "run.id=other"))
    adopt(demo(directory, "run.group_size=4"))
    assert [kept.number for kept in kept_configurations(directory)] == [1, 2]


def test_a_run_toml_that_cannot_be_read_is_not_overwritten(tmp_path: Path) -> None:
    adopt(demo(tmp_path))
    (tmp_path / "identity.json").unlink()
    (tmp_path / "run.toml").write_text("[run\n")
    with pytest.raises(ConfigError, match=r"cannot be told from its run\.toml"):
        adopt(demo(tmp_path))
    assert (tmp_path / "run.toml").read_text() == "[run\n"


def test_a_moved_model_is_the_same_and_another_is_not(tmp_path: Path) -> None:
    directory, moved = tmp_path / "run", tmp_path / "moved"
    config = demo(directory)
    adopt(config)
    shutil.copytree(config.model.path, moved)
    assert list(adopt(demo(directory, f"model.path={moved}"))) == ["model.path"]
    read = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps(read | {"transformers_version": "0"}))
    assert adopt(demo(directory, f"model.path={moved}")) == {}
    (moved / "config.json").write_text(json.dumps(read | {"hidden_size": 64}))
    with pytest.raises(ConfigError, match=r"whose config\.json is not that of the model that run demo began with"):
        adopt(demo(directory, f"model.path={moved}"))


def test_every_configuration_is_kept_with_what_it_changed(tmp_path: Path) -> None:
    assert adopt(demo(tmp_path)) == {}
    assert adopt(demo(tmp_path)) == {}, "the same again is no change"
    changes = adopt(demo(tmp_path, "run.ranks=1", "learner.optimizer.learning_rate=1e-5"))
    assert changes["run.ranks"] == (2, 1)
    assert in_words(changes, 1) == "learner.optimizer.learning_rate 0.0003 → 1e-05 and 1 more"
    adopt(demo(tmp_path, "run.drain_s=9"))
    first, second, third = kept_configurations(tmp_path)
    assert (first.changes, second.changes) == ({}, changes)
    assert third.changes["run.ranks"] == (1, 2) and third.changes["run.drain_s"] == (5.0, 9.0)
    assert first.digest == third.digest != second.digest, "a deadline changes no step"
    assert load(None, directory=tmp_path).run.drain_s == 9


def test_a_service_may_run_where_there_is_no_model(tmp_path: Path) -> None:
    adopt(demo(tmp_path))
    check_identity(demo(tmp_path, f"model.path={tmp_path / 'elsewhere'}"))


def test_a_fixed_setting_says_why() -> None:
    assert {"run.id", "run.partitions", "blobs.uri", "broker.kind"} == set(fixed())
    assert all(reason for reason in fixed().values())


def test_a_kept_file_that_cannot_be_read_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for steps in (1, 2, 3):
        adopt(demo(tmp_path, f"run.steps={steps}"))
    (tmp_path / "configurations" / "0002.toml").write_text("[run\n")
    assert [kept.number for kept in kept_configurations(tmp_path)] == [1, 3]
    assert "0002.toml cannot be read and is passed over" in caplog.text
    (tmp_path / "configurations" / "0003.toml").write_bytes(b"\xff")
    assert adopt(demo(tmp_path, "run.steps=4"))["run.steps"] == (3, 4), "then run.toml says what was before"


def test_what_was_edited_by_hand_is_a_change_and_a_start_that_was_killed_is_kept_once(tmp_path: Path) -> None:
    adopt(demo(tmp_path, "run.steps=1"))
    edited = demo(tmp_path, "run.steps=2")
    (tmp_path / "run.toml").write_text(edited.resolved())
    assert adopt(load(None, directory=tmp_path)) == {"run.steps": (1, 2)}
    # Killed between the two files: the configuration is kept, run.toml is still the one before.
    (tmp_path / "run.toml").write_text(demo(tmp_path, "run.steps=1").resolved())
    assert adopt(edited) == {}
    assert len(kept_configurations(tmp_path)) == 2 and load(None, directory=tmp_path).run.steps == 2


def test_when_a_configuration_was_taken_into_use_outlasts_a_copy(tmp_path: Path) -> None:
    began_s = time.time()
    adopt(demo(tmp_path / "run"))
    kept = tmp_path / "run" / "configurations" / "0001.toml"
    os.utime(kept, (1.0, 1.0))
    assert began_s - 1 < kept_configurations(tmp_path / "run")[0].since_s < time.time() + 1
    kept.write_text(kept.read_text().partition("\n")[2])
    os.utime(kept, (1.0, 1.0))
    assert kept_configurations(tmp_path / "run")[0].since_s == 1.0, "written by an earlier version"
