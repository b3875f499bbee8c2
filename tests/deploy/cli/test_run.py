"""Which ordinals `eachprompt run` takes, and that `status` asks a replica that joined the run."""

from pathlib import Path

import pytest

from deploy.cli.commands.demo import DEMO
from deploy.cli.main import main
from deploy.config.run import load
from deploy.local.standing import expected


def refusal(capsys: pytest.CaptureFixture[str], directory: Path, *arguments: str) -> str:
    """The one line with which `run` ends where the broker is not up."""
    assert main(["run", *arguments, "-c", str(DEMO), "--dir", str(directory)]) == 2
    return capsys.readouterr().err


def test_reward_consumers_join_with_any_ordinal_and_others_have_theirs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for ordinal in ("0", "1", "5"):
        assert "is not up" in refusal(capsys, tmp_path, "rewards", "--ordinal", ordinal)
    assert "--ordinal is -1; allowed: a number of at least 0" in refusal(capsys, tmp_path, "rewards", "--ordinal", "-1")
    for service in ("groups", "producer"):
        line = refusal(capsys, tmp_path, service, "--ordinal", "1")
        assert f"--ordinal is 1; allowed: 0 to 0, for {service} has 1 processes" in line


def test_status_asks_replicas_that_joined(tmp_path: Path) -> None:
    config = load(DEMO, directory=tmp_path)
    configured = expected(config)
    assert "rewards" in configured and "rewards-5" not in configured
    config.layout.health.mkdir()
    for name in ("rewards-5", "rewards", "groups"):
        (config.layout.health / f"{name}.json").touch()
    assert expected(config) == [*configured, "rewards-5"]
