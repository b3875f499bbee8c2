"""The life of a service process: health, signals, exit codes, last lines."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PROGRAM = """
import asyncio, sys
from pathlib import Path
from streams.context import RunContext
from streams.errors import ConfigurationError
from streams.runtime.service import run_service

async def main(service):
    if sys.argv[2] == "starting":
        await asyncio.sleep(600)
    if sys.argv[2] == "misconfigured":
        raise ConfigurationError("model.path 'x' is not a directory")
    async def beside():
        await asyncio.sleep(0.2)
        if sys.argv[2] == "broken":
            raise RuntimeError("the task beside broke")
        if sys.argv[2] == "stray":
            inner = asyncio.create_task(asyncio.sleep(60))
            await asyncio.sleep(0)
            inner.cancel()
            await inner
        await asyncio.sleep(600)
    service.spawn(beside(), "beside")
    service.gauge("things", 3)
    service.ready()
    async with service.wait("for the signal of the test", 60):
        await service.stopping.wait()
    if sys.argv[2] == "slow":
        await asyncio.sleep(600)
    print("drained", flush=True)

context = RunContext("r", Path(sys.argv[1]), "127.0.0.1:1", 2, (Path(sys.argv[1]) / "blobs").as_uri())
sys.exit(run_service("thing", context, main))
"""


def start(tmp_path: Path, mode: str) -> "subprocess.Popen[str]":
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    return subprocess.Popen(
        [sys.executable, str(program), str(tmp_path), mode],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def port_of(tmp_path: Path, process: "subprocess.Popen[str]") -> int:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        try:
            return int(json.loads((tmp_path / "health" / "thing.json").read_text())["port"])
        except FileNotFoundError:
            continue
    raise AssertionError(f"no health file; the service said {process.communicate()[1]}")


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=5) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def wait_ready(port: int) -> None:
    deadline = time.monotonic() + 30
    while get(port, "ready")[0] != 200:
        assert time.monotonic() < deadline


def test_a_service_says_what_it_waits_for_and_drains_on_sigterm(tmp_path: Path) -> None:
    process = start(tmp_path, "well")
    port = port_of(tmp_path, process)
    wait_ready(port)
    assert get(port, "live")[0] == 200
    status = json.loads(get(port, "status")[1])
    assert status["ready"] and status["gauges"] == {"things": 3}
    assert "waits for the signal of the test since" in status["waits"][0]
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, "drained\n")
    assert not (tmp_path / "health" / "thing.json").exists()


def test_sigterm_ends_a_service_that_is_still_starting(tmp_path: Path) -> None:
    process = start(tmp_path, "starting")
    assert get(port_of(tmp_path, process), "ready")[0] == 503
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 0


def test_a_second_signal_aborts(tmp_path: Path) -> None:
    process = start(tmp_path, "slow")
    port = port_of(tmp_path, process)
    wait_ready(port)
    process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + 20
    while not json.loads(get(port, "status")[1])["stopping"]:
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 1


@pytest.mark.parametrize(
    ("mode", "code", "last"),
    [
        ("broken", 1, "thing: RuntimeError: the task beside broke"),
        ("stray", 1, "thing: StrayCancellationError: beside was cancelled from within"),
        ("misconfigured", 2, "model.path 'x' is not a directory"),
    ],
)
def test_an_error_ends_the_service_with_one_clear_last_line(tmp_path: Path, mode: str, code: int, last: str) -> None:
    process = start(tmp_path, mode)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert last in err.strip().splitlines()[-1]
