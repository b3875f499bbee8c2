"""Clocks that jump: in a process that runs, and back; and only its own."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.clocks import Clocks

ROOT = Path(__file__).parents[2]
TELLS = """
import sys, time
for line in sys.stdin:
    print(time.time(), time.time_ns() / 1e9, time.monotonic(), flush=True)
"""


@pytest.fixture
def program(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Tells what time it is when it is asked; started as the supervisor starts a service."""
    env = {**os.environ, **Clocks(tmp_path).environment("groups-0", ROOT)}
    argv = [sys.executable, "-P", "-c", TELLS]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as process:
        yield process
        process.kill()


def asked(process: "subprocess.Popen[str]") -> list[float]:
    """By how much its two wall clocks, and its monotonic one, differ from ours."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    wall_s, wall_ns_s, monotonic_s = map(float, process.stdout.readline().split())
    now_s = time.time()
    return [wall_s - now_s, wall_ns_s - now_s, monotonic_s - time.monotonic()]


def test_the_wall_clock_of_a_running_process_jumps_and_the_monotonic_one_does_not(
    program: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    clocks = Clocks(tmp_path)
    assert asked(program) == pytest.approx([0.0, 0.0, 0.0], abs=5.0)
    clocks.jump("groups-0", -1700.0)
    assert asked(program) == pytest.approx([-1700.0, -1700.0, 0.0], abs=5.0)
    clocks.jump("groups-0", 70.0)
    clocks.environment("groups-0", ROOT)  # of its successor, which believes the same
    assert asked(program) == pytest.approx([70.0, 70.0, 0.0], abs=5.0)
