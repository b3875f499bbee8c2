from pathlib import Path

import pytest

from deploy.cli.commands.demo import DEMO
from deploy.config.run import load
from deploy.local import doctor as checks
from streams.broker import BrokerSettings
from streams.processes.limits import MemoryLimit


def test_a_full_disk_blocks_and_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "DISK_MIN_BYTES", 1 << 60)
    found = checks.disk(tmp_path / "run" / "not" / "there")
    assert found.level == "blocks"
    assert str(tmp_path) in found.finding
    assert "give another --dir" in found.fix


def test_little_memory_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "MEMORY_GOOD_BYTES", 1 << 60)
    assert checks.memory().level == "warning"
    monkeypatch.setattr(checks, "MEMORY_MIN_BYTES", 1 << 60)
    assert checks.memory().level == "blocks"


def test_a_control_groups_limits_are_what_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container the machine has memory and cores that this process never gets."""
    monkeypatch.setattr(checks, "memory_limit", lambda: MemoryLimit(2 << 30, 1 << 30))
    monkeypatch.setattr(checks, "processor_limit", lambda: 0.5)
    memory, processors = checks.memory(), checks.processors()
    assert memory.level == "blocks"
    assert memory.finding == "1.0 GiB available of the 2.0 GiB that a control group allows"
    assert processors.level == "warning" and processors.finding.startswith("0.5 cores' worth of ")


def test_whether_the_cache_can_be_in_fp8_is_said(tmp_path: Path) -> None:
    config = load(DEMO, directory=tmp_path)
    assert checks.cache(config).finding.startswith(("FP8 works", "in the model's precision: "))
    as_said = load(DEMO, directory=tmp_path, overrides=["producer.kv_cache_dtype=auto"])
    assert checks.cache(as_said).finding == "in the model's precision, as configured"


def test_another_version_is_reported_with_the_one_that_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "PINNED", {"aiokafka": "0.0.1", "no-such-package": "1"})
    by_name = {check.name: check for check in checks.versions()}
    assert by_name["aiokafka"].level == "warning"
    assert "tried with 0.0.1" in by_name["aiokafka"].finding
    assert by_name["no-such-package"].level == "blocks"
    assert by_name["no-such-package"].fix == "`make setup` installs it"


def test_a_machine_without_java_falls_back_to_the_embedded_broker(tmp_path: Path) -> None:
    settings = BrokerSettings(java="no-such-java", ephemeral=True)
    assert checks.java(settings).level == "warning"
    found = checks.broker_kind(settings, tmp_path)
    assert found.level == "ok"
    assert found.finding.startswith("embedded, because Apache Kafka cannot run: Java 17+ was not found")


def test_the_embedded_broker_blocks_what_must_last(tmp_path: Path) -> None:
    found = checks.broker_kind(BrokerSettings(kind="embedded"), tmp_path)
    assert found.level == "blocks"
    assert "broker.ephemeral = true" in found.fix


def test_a_cluster_that_is_not_there_blocks(tmp_path: Path) -> None:
    settings = BrokerSettings(kind="external", bootstrap_servers="127.0.0.1:1")
    found = checks.broker_kind(settings, tmp_path)
    assert found.level == "blocks"
    assert "127.0.0.1:1" in found.finding
