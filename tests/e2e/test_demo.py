"""The whole loop, every part real: trained, accounted for, and right although services are killed in its middle."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from streams.broker import BrokerSettings
from streams.broker.jars import kafka_obstacle

pytestmark = [pytest.mark.engine, pytest.mark.timeout(420)]

LIGHT = ("rewards", "groups", "batches", "dispatcher")


def start(directory: Path, broker: str, steps: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-P", "-m", "deploy.cli.main", "demo", "--broker", broker, "--dir", str(directory)]
    command += ["--steps", str(steps), "--json", "--set", "dispatcher.evaluate_samples=1", "--deadline", "380"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: "subprocess.Popen[str]") -> dict[str, Any]:
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err[-3000:]
    summary: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return summary


def check(summary: dict[str, Any], directory: Path, steps: int) -> None:
    audit = summary["audit"]
    assert summary["steps"] == steps
    assert (audit["unaccounted"], audit["trained_twice"]) == (0, 0), audit
    assert audit["produced"] == sum(audit["dispositions"].values()) + audit["in_flight"]
    assert audit["dispositions"]["trained"] > 0
    assert summary["max_staleness"] <= 1
    assert summary["replay"]["k3_on"] is not None
    for name in ("summary.json", "report.png", "run.toml"):
        assert (directory / name).stat().st_size > 0
    assert not list((directory / "pids").glob("*.pid"))


def step_of(directory: Path) -> int:
    """The newest step that the learner's log or its health tells; 0 before the first."""
    files = list((directory / "health").glob("learner-0.json"))
    if not files:
        return 0
    import urllib.error
    import urllib.request

    try:
        port = json.loads(files[0].read_text())["port"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=5) as response:
            return int(json.load(response)["gauges"].get("step", 0))
    except (OSError, ValueError, urllib.error.URLError):
        return 0


def wait_for_step(directory: Path, process: "subprocess.Popen[str]", step: int) -> None:
    deadline = time.monotonic() + 240
    while step_of(directory) < step:
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline, f"step {step} was not reached"
        time.sleep(0.1)


def kill(directory: Path, name: str) -> None:
    os.kill(int((directory / "pids" / f"{name}.pid").read_text()), signal.SIGKILL)


def audit_of(directory: Path, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-P", "-m", "deploy.cli.main", "audit", "--dir", str(directory), "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    audit: dict[str, Any] = json.loads(done.stdout)
    return audit


def test_the_demo_trains_on_the_embedded_broker_and_accounts_for_every_rollout(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    summary = finish(start(directory, "embedded", 3))
    check(summary, directory, 3)
    assert summary["broker"] == "embedded"
    assert audit_of(directory) == summary["audit"]
    assert audit_of(directory, "--digests") == summary["audit"] | {"steps_verified": 3}


def test_a_run_whose_services_are_killed_one_after_the_other_finishes_correctly(tmp_path: Path) -> None:
    obstacle = kafka_obstacle(BrokerSettings(kind="kafka"))
    if obstacle is not None:
        pytest.skip(f"Apache Kafka cannot run: {obstacle}")
    directory = tmp_path / "run"
    process = start(directory, "kafka", 12)
    for number, name in enumerate((*LIGHT, "producer"), start=1):
        wait_for_step(directory, process, number)
        kill(directory, name)
    summary = finish(process)
    check(summary, directory, 12)
    assert audit_of(directory, "--digests")["steps_verified"] == 12
    assert all(summary["restarts"][name] >= 1 for name in (*LIGHT, "producer")), summary["restarts"]
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(directory) in " ".join(p.info["cmdline"] or [])]
