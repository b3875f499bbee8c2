from pathlib import Path

from deploy.cli.commands.demo import DEMO
from deploy.config.run import load
from deploy.local.processes import units
from schemas.services import SERVICES


def test_every_service_has_its_processes_in_stopping_order(tmp_path: Path) -> None:
    config = load(DEMO, directory=tmp_path, overrides=["replicas.rewards=2", "run.ranks=2"])
    found = units(config)
    names = [process.name for unit in found for process in unit.processes]
    assert names == ["dispatcher", "producer", "rewards-0", "rewards-1", "groups", "batches", "learner-0", "learner-1"]
    assert next(unit.service for unit in found) == next(iter(SERVICES))
    assert len(found[-1].processes) == 2, "the ranks are one unit"


def test_environment_and_command_line(tmp_path: Path) -> None:
    config = load(DEMO, directory=tmp_path, overrides=["learner.threads=3", "producer.threads=2", "run.ranks=2"])
    by_name = {process.name: process for unit in units(config) for process in unit.processes}
    threads = {name: process.env["OMP_NUM_THREADS"] for name, process in by_name.items()}
    assert threads["producer"] == "2"
    assert threads["learner-1"] == "3"
    assert threads["groups"] == "1"
    rank = by_name["learner-1"]
    assert (rank.env["RANK"], rank.env["WORLD_SIZE"]) == ("1", "2")
    assert rank.argv[-7:] == ("run", "learner", "--dir", str(tmp_path), "--ordinal", "1", "--supervised")
    assert rank.log == tmp_path / "logs" / "learner-1.log"
    assert rank.pid_file == tmp_path / "pids" / "learner-1.pid"
    assert "RANK" not in by_name["groups"].env
