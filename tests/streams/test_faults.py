"""Fault points: silent unless armed, reached in a running process, fired once."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from streams import faults
from streams.faults import POINTS, FaultError, Faults, arm, disarm, fired

SOURCES = ("streams", "producers", "consumers", "learner")
ROOT = Path(__file__).parents[2]

REACHES = """
import sys
from streams import faults

faults.enter("groups")
print("up", flush=True)
for line in sys.stdin:
    faults.reach(line.strip())
    print("passed", line.strip(), flush=True)
"""


@pytest.fixture
def program(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process of service `groups` that reaches the points that its standard input names."""
    process = subprocess.Popen(
        [sys.executable, "-c", REACHES],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, faults.VARIABLE: str(tmp_path), "PYTHONPATH": str(ROOT)},
    )
    with process:
        assert said(process) == "up"
        yield process
        process.kill()


def said(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def tell(process: "subprocess.Popen[str]", point: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{point}\n")
    process.stdin.flush()


def test_a_running_process_is_killed_at_the_hit_that_was_asked_for(
    program: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    tell(program, "transaction.sent")
    assert said(program) == "passed transaction.sent"
    began = time.time()
    arm(tmp_path, "groups", "transaction.sent", "kill", hit=2)
    arm(tmp_path, "batches", "transaction.begun", "kill")
    for point in ("transaction.sent", "transaction.begun"):
        tell(program, point)
        assert said(program) == f"passed {point}"
    tell(program, "transaction.sent")
    assert program.wait(10) == -signal.SIGKILL
    ((service, point, at_s),) = fired(tmp_path)
    assert (service, point) == ("groups", "transaction.sent")
    assert began - 1 <= at_s <= time.time() + 1
    assert list(fired(tmp_path)) == []


def test_a_process_stands_still_at_its_point_and_goes_on(program: "subprocess.Popen[str]", tmp_path: Path) -> None:
    arm(tmp_path, "groups", "blobs.written", "stop")
    tell(program, "blobs.written")
    _, status = os.waitpid(program.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    program.send_signal(signal.SIGCONT)
    assert said(program) == "passed blobs.written"
    tell(program, "blobs.written")
    assert said(program) == "passed blobs.written", "it fires once"


def test_a_point_raises_and_a_disarmed_one_does_not(tmp_path: Path) -> None:
    points = Faults(tmp_path, "groups")
    arm(tmp_path, "groups", "worker.handled", "raise")
    with pytest.raises(FaultError, match=r"worker\.handled"):
        points.reach("worker.handled")
    arm(tmp_path, "groups", "worker.handled", "raise")
    disarm(tmp_path)
    points.reach("worker.handled")


def test_hits_are_counted_from_the_arming(tmp_path: Path) -> None:
    points = Faults(tmp_path, "groups")
    for _ in range(2):
        arm(tmp_path, "groups", "worker.handled", "raise", hit=3)
        points.reach("worker.handled")
        points.reach("worker.handled")
        disarm(tmp_path)
        points.reach("worker.handled")


def test_nothing_is_done_without_the_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    arm(tmp_path, "groups", "worker.handled", "raise")
    monkeypatch.delenv(faults.VARIABLE, raising=False)
    faults.enter("groups")
    faults.reach("worker.handled")


@pytest.mark.parametrize(
    ("point", "action", "hit", "said"),
    [
        ("transaction.snet", "kill", 1, "'transaction.snet' is not one of transaction.begun"),
        ("transaction.sent", "explode", 1, "'explode' is not one of kill, stop, raise"),
        ("transaction.sent", "kill", 0, "is to act at hit 0"),
    ],
)
def test_what_cannot_be_armed_is_said(tmp_path: Path, point: str, action: str, hit: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        arm(tmp_path, "groups", point, action, hit)  # type: ignore[arg-type]


def test_every_point_stands_in_the_code_and_every_place_is_a_point() -> None:
    texts = [path.read_text() for source in SOURCES for path in (ROOT / source).rglob("*.py")]
    placed = {piece.partition('"')[0] for text in texts for piece in text.split('reach("')[1:]}
    assert placed == set(POINTS)
