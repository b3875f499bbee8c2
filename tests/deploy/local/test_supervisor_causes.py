"""Which ends are a service's own fault, and what has its cause outside of it."""

import asyncio
import dataclasses
import os
import signal
import sys
from pathlib import Path

import pytest

from deploy.local.restarts import RestartPolicy
from deploy.local.supervisor import GaveUpError, ProcessSpec, Supervisor, Unit
from tests.builders import until
from tests.deploy.local.small_programs import LINGER, POLICY, has_written, pid_of, spec, unit


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
