"""The supervisor on real processes: small ones that crash, linger, or have children of their own."""

import asyncio
import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from deploy.local.restarts import RestartPolicy
from deploy.local.supervisor import _MATE_S, GaveUpError, ProcessSpec, Supervisor, Unit, last_line

POLICY = RestartPolicy(first_s=0.05, max_s=0.2, quick_s=60.0, quick_failures=3)
DEADLINE_S = 60.0

LINGER = "import signal; print('up', flush=True); signal.pause()"
STUBBORN = (
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True)\nwhile True: signal.pause()"
)
POLITE = (
    "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); print('up', flush=True); signal.pause()"
)
WITH_CHILD = """
import subprocess, sys, signal
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
print(child.pid, flush=True)
signal.pause()
"""


def spec(directory: Path, name: str, program: str) -> ProcessSpec:
    argv = (sys.executable, "-c", textwrap.dedent(program))
    return ProcessSpec(name, argv, dict(os.environ), directory / f"{name}.log", directory / "pids" / f"{name}.pid")


def unit(directory: Path, name: str, *programs: str) -> Unit:
    if len(programs) == 1:
        return Unit(name, (spec(directory, name, programs[0]),))
    return Unit(name, tuple(spec(directory, f"{name}-{k}", program) for k, program in enumerate(programs)))


async def until(what: str, condition: Callable[[], bool]) -> None:
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"waited {DEADLINE_S} s {what}") from None


def has_written(directory: Path, name: str, times: int = 1) -> Callable[[], bool]:
    log = directory / f"{name}.log"
    # Whole lines: where output is unbuffered the end of a line is written by itself, and a kill may come before it.
    return lambda: log.exists() and log.read_text().count("\n") >= times


def pid_of(directory: Path, name: str) -> int:
    return int((directory / "pids" / f"{name}.pid").read_text())


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def test_stops_in_order_and_leaves_no_pid_file(tmp_path: Path) -> None:
    order: list[str] = []
    program = POLITE.replace("sys.exit(0)", "(print('down', flush=True), sys.exit(0))")
    names = ("first", "second", "third")
    supervisor = Supervisor([unit(tmp_path, name, program) for name in names], POLICY, stop_s=10)
    stopping = asyncio.Event()
    keeping = asyncio.create_task(supervisor.keep(stopping))
    for name in names:
        await until(f"for {name}", has_written(tmp_path, name))
    stopping.set()
    await keeping
    order = sorted(names, key=lambda name: (tmp_path / f"{name}.log").stat().st_mtime_ns)
    assert order == list(names)
    assert not any((tmp_path / "pids").iterdir())


async def test_a_dead_process_is_started_again(tmp_path: Path) -> None:
    notes: list[str] = []
    supervisor = Supervisor([unit(tmp_path, "svc", LINGER)], POLICY, stop_s=5, note=notes.append)
    stopping = asyncio.Event()
    keeping = asyncio.create_task(supervisor.keep(stopping))
    await until("for the first process", has_written(tmp_path, "svc"))
    os.kill(pid_of(tmp_path, "svc"), signal.SIGKILL)
    await until("for the second process", has_written(tmp_path, "svc", 2))
    stopping.set()
    await keeping
    assert supervisor.restarts == {"svc": 1}
    assert notes == [f"svc ended with signal 9: up (see {tmp_path / 'svc.log'}); starting it again in 0.05 s"]


async def test_what_dies_of_its_own_fault_whenever_it_is_at_work_is_delayed(tmp_path: Path) -> None:
    """But not what somebody kills as often."""
    notes: list[str] = []
    policy = RestartPolicy(first_s=60.0, max_s=60.0, quick_s=0.0, quick_failures=3, deaths=2)
    units = [unit(tmp_path, "faulty", "import sys; sys.exit(3)"), unit(tmp_path, "struck", LINGER)]
    supervisor = Supervisor(units, policy, stop_s=5, note=notes.append)
    stopping = asyncio.Event()
    keeping = asyncio.create_task(supervisor.keep(stopping))
    for number in range(1, 6):
        await until("for the next process", has_written(tmp_path, "struck", number))
        os.kill(pid_of(tmp_path, "struck"), signal.SIGKILL)
    await until("for the sixth process", has_written(tmp_path, "struck", 6))
    await until("for the delay", lambda: any("in 60 s" in note for note in notes))
    stopping.set()
    await keeping
    assert supervisor.restarts == {"faulty": 3, "struck": 5}
    assert [note.rpartition("; starting it again ")[2] for note in notes if "faulty" in note] == [
        "at once", "at once", "in 60 s",
    ]  # fmt: skip
    assert any("it died 3 times within 600 s, each time after it was ready; starting it again" in n for n in notes)


async def test_gives_up_and_names_service_code_and_last_line(tmp_path: Path) -> None:
    crash = "import sys; print('first'); print('the reason'); sys.exit(3)"
    units = [unit(tmp_path, "other", LINGER), unit(tmp_path, "svc", crash)]
    supervisor = Supervisor(units, POLICY, stop_s=5, note=lambda text: None)
    with pytest.raises(GaveUpError) as caught:
        await supervisor.keep(asyncio.Event())
    log = tmp_path / "svc.log"
    sentence = f"gave up on svc after 3 quick failures: svc ended with exit code 3: the reason (see {log})"
    assert str(caught.value) == sentence
    assert caught.value.exit_code == 1
    assert log.read_text().count("the reason") == 3
    assert not any((tmp_path / "pids").iterdir())


async def test_what_has_its_cause_outside_is_started_again_for_as_long_as_it_lasts(tmp_path: Path) -> None:
    """Twice as many quick ends as would be the end of it, then the cause is gone."""
    notes: list[str] = []
    gone_file = tmp_path / "there is room again"
    program = f"""
    import signal, sys
    from pathlib import Path
    print("up", flush=True)
    if not Path({str(gone_file)!r}).exists():
        print("No space left on device", flush=True)
        sys.exit(75)
    signal.pause()
    """
    policy = RestartPolicy(first_s=0.01, max_s=0.02, quick_s=60.0, quick_failures=3)
    supervisor = Supervisor([unit(tmp_path, "svc", program)], policy, stop_s=5, note=notes.append)
    stopping = asyncio.Event()
    keeping = asyncio.create_task(supervisor.keep(stopping))
    await until("for six ends", lambda: supervisor.restarts["svc"] >= 6)
    gone_file.touch()
    log = tmp_path / "svc.log"
    await until("for it to stay", lambda: log.read_text().splitlines()[-1] == "up")
    assert not keeping.done()
    stopping.set()
    await keeping
    ended = f"svc ended with exit code 75: No space left on device (see {log})"
    assert notes[0] == f"{ended}; the cause lies outside (as its exit code says); starting it again in 0.01 s"


async def test_a_directory_that_cannot_be_written_is_an_outside_cause(tmp_path: Path) -> None:
    """Whatever a service makes of a full disk: while it is full, no end of a service ends the run."""
    notes: list[str] = []
    # A directory in name only: writing below it fails as on a broken disk.
    full = tmp_path / "file"
    full.touch()
    policy = RestartPolicy(first_s=0.01, max_s=0.02, quick_s=60.0, quick_failures=3)
    units = [unit(tmp_path, "svc", "raise SystemExit(1)")]
    supervisor = Supervisor(units, policy, stop_s=5, note=notes.append, storage=[tmp_path / "not there", full])
    stopping = asyncio.Event()
    keeping = asyncio.create_task(supervisor.keep(stopping))
    await until("for six ends", lambda: supervisor.restarts["svc"] >= 6)
    stopping.set()
    await keeping
    assert f"; the cause lies outside ({full} cannot be written: " in notes[0]


async def test_who_was_at_work_and_ends_while_a_directory_cannot_be_written_is_excused(tmp_path: Path) -> None:
    """However often: what a full disk ends is no fault of its own, and is started again at once."""
    notes: list[str] = []
    full = tmp_path / "file"
    full.touch()
    policy = RestartPolicy(first_s=60.0, max_s=60.0, quick_s=0.0, quick_failures=3, deaths=2)
    supervisor = Supervisor(
        [unit(tmp_path, "svc", "raise SystemExit(1)")], policy, stop_s=5, note=notes.append, storage=[full]
    )
    stopping = asyncio.Event()
    keeping = asyncio.create_task(supervisor.keep(stopping))
    await until("for six ends or a delay", lambda: len(notes) >= 6 or any("in 60 s" in note for note in notes))
    stopping.set()
    await keeping
    assert all(f"; the cause lies outside ({full} cannot be written: " in note for note in notes)
    assert all(note.endswith("starting it again at once") for note in notes)


async def test_what_cannot_be_started_for_want_of_room_is_tried_again(tmp_path: Path) -> None:
    """Its log is below a file, so opening it fails with an OSError until the file makes way."""
    notes: list[str] = []
    barrier = tmp_path / "logs"
    barrier.touch()
    child = ProcessSpec(
        "svc", (sys.executable, "-c", LINGER), dict(os.environ), barrier / "svc.log", tmp_path / "svc.pid"
    )
    supervisor = Supervisor([Unit("svc", (child,))], POLICY, stop_s=5, note=notes.append)
    stopping = asyncio.Event()
    keeping = asyncio.create_task(supervisor.keep(stopping))
    await until("for four attempts", lambda: supervisor.restarts["svc"] >= 4)
    barrier.unlink()
    await until("for it to be up", lambda: (barrier / "svc.log").exists() and (tmp_path / "svc.pid").exists())
    stopping.set()
    await keeping
    assert notes[0].startswith("svc could not be started: ")
    assert "; the cause lies outside (" in notes[0]


READY = """
import http.server, json, os
from pathlib import Path
directory = Path({directory!r})
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        (directory / f"asked-{{os.getpid()}}").touch()
    def log_message(self, *_): pass
server = http.server.HTTPServer(("127.0.0.1", 0), Answer)
(directory / "svc.json").write_text(json.dumps({{"port": server.server_port, "pid": os.getpid()}}))
print("up", flush=True)
server.serve_forever()
"""


async def test_a_service_that_was_ready_for_a_while_is_started_again_at_once(tmp_path: Path) -> None:
    """Many kills of what does its work do not end a run, and cost no delay."""
    notes: list[str] = []
    plain = spec(tmp_path, "svc", READY.format(directory=str(tmp_path)))
    child = dataclasses.replace(plain, health=tmp_path / "svc.json")
    policy = RestartPolicy(first_s=60.0, max_s=60.0, quick_s=0.2, quick_failures=2)
    supervisor = Supervisor([Unit("svc", (child,))], policy, stop_s=5, note=notes.append)
    stopping = asyncio.Event()
    keeping = asyncio.create_task(supervisor.keep(stopping))
    for number in range(1, 4):
        await until(f"for process {number}", has_written(tmp_path, "svc", number))
        pid = pid_of(tmp_path, "svc")
        await until("for the answer that it is ready", (tmp_path / f"asked-{pid}").exists)
        await asyncio.sleep(2 * policy.quick_s)  # it serves for a while
        os.kill(pid, signal.SIGKILL)
    await until("for the last process", has_written(tmp_path, "svc", 4))
    stopping.set()
    await keeping
    assert len(notes) == 3
    assert all(note.endswith("; starting it again at once") for note in notes)


async def test_a_configuration_error_is_not_tried_again(tmp_path: Path) -> None:
    wrong = "import sys; print('run.steps is wrong'); sys.exit(2)"
    supervisor = Supervisor([unit(tmp_path, "svc", wrong)], POLICY, stop_s=5)
    with pytest.raises(GaveUpError, match=r"svc ended with exit code 2: run\.steps is wrong") as caught:
        await supervisor.keep(asyncio.Event())
    assert caught.value.exit_code == 2
    assert (tmp_path / "svc.log").read_text().count("wrong") == 1


async def test_ranks_live_and_die_together(tmp_path: Path) -> None:
    supervisor = Supervisor([unit(tmp_path, "learner", LINGER, STUBBORN)], POLICY, stop_s=0.2, note=lambda text: None)
    stopping = asyncio.Event()
    keeping = asyncio.create_task(supervisor.keep(stopping))
    await until("for rank 0", has_written(tmp_path, "learner-0"))
    await until("for rank 1", has_written(tmp_path, "learner-1"))
    mate = pid_of(tmp_path, "learner-1")
    os.kill(pid_of(tmp_path, "learner-0"), signal.SIGKILL)
    await until("for rank 0 again", has_written(tmp_path, "learner-0", 2))
    await until("for rank 1 again", has_written(tmp_path, "learner-1", 2))
    assert gone(mate)
    stopping.set()
    await keeping


async def test_the_time_that_a_mate_takes_to_end_is_no_service(tmp_path: Path) -> None:
    """A rank that dies at once, beside one that hangs for `_MATE_S`, is a quick failure."""
    dies = unit(tmp_path, "learner", "import sys; print('no'); sys.exit(1)", STUBBORN)
    policy = RestartPolicy(first_s=0.05, max_s=0.1, quick_s=_MATE_S - 0.2, quick_failures=2)
    supervisor = Supervisor([dies], policy, stop_s=0.2, note=lambda text: None)
    with pytest.raises(GaveUpError, match="gave up on learner after 2 quick failures"):
        async with asyncio.timeout(DEADLINE_S):
            await supervisor.keep(asyncio.Event())


async def test_what_does_not_stop_is_killed_at_the_deadline(tmp_path: Path) -> None:
    supervisor = Supervisor([unit(tmp_path, "svc", STUBBORN)], POLICY, stop_s=0.3)
    stopping = asyncio.Event()
    keeping = asyncio.create_task(supervisor.keep(stopping))
    await until("for it to be up", has_written(tmp_path, "svc"))
    pid = pid_of(tmp_path, "svc")
    stopping.set()
    async with asyncio.timeout(DEADLINE_S):
        await keeping
    assert gone(pid)


async def test_kill_ends_everything_at_once(tmp_path: Path) -> None:
    supervisor = Supervisor([unit(tmp_path, "svc", STUBBORN)], POLICY, stop_s=10 * DEADLINE_S)
    stopping = asyncio.Event()
    keeping = asyncio.create_task(supervisor.keep(stopping))
    await until("for it to be up", has_written(tmp_path, "svc"))
    stopping.set()
    await asyncio.sleep(0)
    supervisor.kill()
    async with asyncio.timeout(DEADLINE_S):
        await keeping


async def test_stopping_while_it_waits_to_start_again_is_immediate(tmp_path: Path) -> None:
    policy = RestartPolicy(first_s=10 * DEADLINE_S, max_s=10 * DEADLINE_S, quick_s=60, quick_failures=5)
    noted = asyncio.Event()
    supervisor = Supervisor(
        [unit(tmp_path, "svc", "raise SystemExit(1)")], policy, stop_s=5, note=lambda text: noted.set()
    )
    stopping = asyncio.Event()
    keeping = asyncio.create_task(supervisor.keep(stopping))
    async with asyncio.timeout(DEADLINE_S):
        await noted.wait()
        stopping.set()
        await keeping


async def test_the_children_of_a_killed_service_go_with_it(tmp_path: Path) -> None:
    supervisor = Supervisor([unit(tmp_path, "svc", WITH_CHILD)], POLICY, stop_s=5, note=lambda text: None)
    stopping = asyncio.Event()
    keeping = asyncio.create_task(supervisor.keep(stopping))
    await until("for its child", has_written(tmp_path, "svc"))
    grandchild = int((tmp_path / "svc.log").read_text())
    os.kill(pid_of(tmp_path, "svc"), signal.SIGKILL)
    await until("for the grandchild to end", lambda: gone(grandchild))
    stopping.set()
    await keeping


async def test_a_killed_supervisor_leaves_no_orphan(tmp_path: Path) -> None:
    program = f"""
    import asyncio, os, sys
    from pathlib import Path
    from deploy.local.restarts import RestartPolicy
    from deploy.local.supervisor import ProcessSpec, Supervisor, Unit
    directory = Path({str(tmp_path)!r})
    log = directory / "svc.log"
    child = ProcessSpec("svc", (sys.executable, "-c", {WITH_CHILD!r}), dict(os.environ), log, directory / "svc.pid")
    supervisor = Supervisor([Unit("svc", (child,))], RestartPolicy(1, 1, 1, 1), stop_s=5)
    asyncio.run(supervisor.keep(asyncio.Event()))
    """
    argv = [sys.executable, "-c", textwrap.dedent(program)]
    supervisor = await asyncio.to_thread(subprocess.Popen, argv)
    await until("for the grandchild", has_written(tmp_path, "svc"))
    below = psutil.Process(supervisor.pid).children(recursive=True)
    assert len(below) == 3, "service, its child and the orphan reaper"
    supervisor.kill()
    await asyncio.to_thread(supervisor.wait, DEADLINE_S)
    await until("for everything below it to end", lambda: all(gone(process.pid) for process in below))


def test_last_line_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    assert last_line(log) == "it wrote no log"
    log.write_text("")
    assert last_line(log) == "its log is empty"
    log.write_text("one\ntwo\n\n")
    assert last_line(log) == "two"
