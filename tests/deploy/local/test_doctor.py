from pathlib import Path

import pytest

from deploy.local import doctor as checks
from streams.broker import BrokerSettings


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
