"""Child processes: their end, their files, and that none outlives its parent."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from streams.processes.child import Child, ChildError, running_pid, stop_pid, write_pid_file

pytestmark = pytest.mark.timeout(120)

SLEEP = ["sleep", "600"]


def python(source: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(source), *arguments]


def wait_for_text(path: Path, text: str, child: Child) -> None:
    deadline = time.monotonic() + 20
    while text not in path.read_text():
        assert time.monotonic() < deadline, f"{text!r} is not in {path}: {path.read_text()}"
        assert child.wait(0.02) is None, path.read_text()


def test_output_goes_to_the_log_and_the_exit_code_is_kept(tmp_path: Path) -> None:
    log, pid_file = tmp_path / "logs" / "a.log", tmp_path / "pids" / "a.pid"
    for _ in range(2):
        child = Child.start(
            python("import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"), log=log, pid_file=pid_file
        )
        assert child.wait(20) == 3
    assert sorted(log.read_text().split()) == ["err", "err", "out", "out"]
    assert not pid_file.exists()
    assert not child.alive()
    assert child.stop(1) == 3, "stopping what has ended does nothing"


def test_the_pid_file_names_the_program_itself(tmp_path: Path) -> None:
    pid_file = tmp_path / "a.pid"
    child = Child.start(
        python("import os, time; print(os.getpid(), flush=True); time.sleep(600)"),
        log=tmp_path / "a.log",
        pid_file=pid_file,
    )
    try:
        wait_for_text(tmp_path / "a.log", "\n", child)
        assert int((tmp_path / "a.log").read_text()) == child.pid == int(pid_file.read_text())
        assert running_pid(pid_file) == child.pid
        with pytest.raises(ChildError, match=f"process {child.pid} already runs"):
            Child.start(SLEEP, log=tmp_path / "b.log", pid_file=pid_file)
    finally:
        assert child.stop(20) == -signal.SIGTERM
    assert running_pid(pid_file) is None


def test_stop_waits_for_a_graceful_end(tmp_path: Path) -> None:
    source = """
        import signal, sys, time
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        print("READY", flush=True)
        time.sleep(600)
    """
    child = Child.start(python(source), log=tmp_path / "a.log")
    wait_for_text(tmp_path / "a.log", "READY", child)
    assert child.stop(20) == 0


def test_what_ignores_sigterm_is_killed_at_the_deadline(tmp_path: Path) -> None:
    source = """
        import signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("READY", flush=True)
        time.sleep(600)
    """
    child = Child.start(python(source), log=tmp_path / "a.log")
    wait_for_text(tmp_path / "a.log", "READY", child)
    begun = time.monotonic()
    assert child.stop(0.3) == -signal.SIGKILL
    assert 0.3 <= time.monotonic() - begun < 5


@pytest.mark.parametrize("ending", ["stop", "exit"])
def test_its_own_children_end_with_it(tmp_path: Path, ending: str) -> None:
    source = """
        import subprocess, sys, time
        print(subprocess.Popen(["sleep", "600"]).pid, flush=True)
        if sys.argv[1] == "stop":
            time.sleep(600)
    """
    child = Child.start(python(source, ending), log=tmp_path / "a.log")
    if ending == "stop":
        wait_for_text(tmp_path / "a.log", "\n", child)
        child.stop(5)
    assert child.wait(20) is not None
    grandchild = int((tmp_path / "a.log").read_text())
    assert _gone(grandchild, 20)


def _gone(pid: int, deadline_s: float) -> bool:
    """Whether a process that is not ours ends (a zombie nobody reaps has ended) before the deadline."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([pidfd], [], [], deadline_s)[0])
    finally:
        os.close(pidfd)


def test_it_dies_with_its_parent_but_not_with_the_thread_that_started_it(tmp_path: Path) -> None:
    source = """
        import sys, threading, time
        from pathlib import Path
        from streams.processes.child import Child

        started = []
        thread = threading.Thread(
            target=lambda: started.append(Child.start(["sleep", "600"], log=Path(sys.argv[1]) / "sleep.log"))
        )
        thread.start()
        thread.join()
        assert started[0].wait(0.5) is None, "it died with the thread"
        print(started[0].pid, flush=True)
        time.sleep(600)
    """
    parent = subprocess.Popen(python(source, str(tmp_path)), stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent, parent.stdout:
        try:
            pid = int(parent.stdout.readline())
            assert psutil.pid_exists(pid)
        finally:
            parent.kill()
        parent.wait(10)
        assert _gone(pid, 20)


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ChildError, match="'no-such-program' was not found"):
        Child.start(["no-such-program"], log=tmp_path / "a.log", pid_file=tmp_path / "a.pid")
    assert not (tmp_path / "a.pid").exists()


def test_a_pid_file_of_a_dead_process_is_stale(tmp_path: Path) -> None:
    pid_file = tmp_path / "a.pid"
    assert running_pid(pid_file) is None
    gone = subprocess.Popen(["true"])
    gone.wait()
    write_pid_file(pid_file, gone.pid)
    assert running_pid(pid_file) is None
    pid_file.write_text("not a number")
    assert running_pid(pid_file) is None


def test_a_pid_file_older_than_its_process_is_about_another_one(tmp_path: Path) -> None:
    pid_file = tmp_path / "a.pid"
    write_pid_file(pid_file, os.getpid())
    assert running_pid(pid_file) == os.getpid()
    os.utime(pid_file, (1, psutil.Process().create_time() - 10))
    assert running_pid(pid_file) is None


def test_a_process_that_is_no_child_can_be_stopped() -> None:
    with subprocess.Popen(["sleep", "600"]) as process:
        assert stop_pid(process.pid, 20)
        assert process.wait(20) == -signal.SIGTERM
    assert stop_pid(process.pid, 1), "it is gone already"


async def test_its_end_can_be_awaited(tmp_path: Path) -> None:
    child = Child.start(python("import sys; sys.stdin.read(); sys.exit(7)"), log=tmp_path / "a.log")
    assert await asyncio.wait_for(child.ended(), 20) == 7
    assert await asyncio.wait_for(child.ended(), 1) == 7
    endless = Child.start(SLEEP, log=tmp_path / "b.log")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(endless.ended(), 0.05)
    await asyncio.to_thread(endless.stop, 5)


def test_many_threads_may_start_children_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as threads:
        children = list(
            threads.map(lambda i: Child.start(["sh", "-c", f"exit {i}"], log=tmp_path / f"{i}.log"), range(8))
        )
    assert [child.wait(20) for child in children] == list(range(8))


def test_environment_and_directory_are_passed_on(tmp_path: Path) -> None:
    child = Child.start(
        ["sh", "-c", 'echo "$GREETING"; pwd'],
        log=tmp_path / "a.log",
        env={"GREETING": "hello", "PATH": os.environ["PATH"]},
        cwd=tmp_path,
    )
    assert child.wait(20) == 0
    assert (tmp_path / "a.log").read_text().splitlines() == ["hello", str(tmp_path.resolve())]
