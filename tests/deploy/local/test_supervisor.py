"""The supervisor on real processes: small ones that crash, linger, or have children of their own."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from deploy.local import supervisor as module
from deploy.local.restarts import RestartPolicy
from deploy.local.supervisor import _MATE_S, GaveUpError, Supervisor
from tests.builders import until
from tests.deploy.local.small_programs import (
    DEADLINE_S,
    LINGER,
    POLICY,
    POLITE,
    STUBBORN,
    WITH_CHILD,
    gone,
    has_written,
    pid_of,
    unit,
)


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


async def test_who_takes_long_to_stop_is_said_while_it_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SAY_S", 0.1)
    notes: list[str] = []
    program = """
    import signal, sys, time
    def stop(*_):
        time.sleep(2)
        sys.exit(0)
    signal.signal(signal.SIGTERM, stop)
    print("up", flush=True)
    while True:
        signal.pause()
    """
    supervisor = Supervisor([unit(tmp_path, "learner", program)], POLICY, stop_s=3, note=notes.append)
    stopping = asyncio.Event()
    keeping = asyncio.create_task(supervisor.keep(stopping))
    await until("for it to run", has_written(tmp_path, "learner", 1))
    stopping.set()
    await keeping
    assert [note.rpartition(",")[0] for note in notes] == ["waiting for learner to finish"]
