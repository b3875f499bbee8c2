"""What an owner leaves behind is killed: process groups that it reported, processes that bear its mark."""

import os
import select
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from streams.processes import orphan_reaper
from streams.processes.orphan_reaper import OrphanReaper, kill_marked, marked

DEADLINE_S = 20.0

SLEEPER = "import subprocess, sys; p = subprocess.Popen(['sleep', '600']); print(p.pid, flush=True); p.wait()"
"""A program with a child of its own, whose id it prints."""


class Family:
    """A sleeper in a process group of its own, and its child."""

    def __init__(self, **variables: str) -> None:
        self.parent = subprocess.Popen(
            [sys.executable, "-c", SLEEPER],
            stdout=subprocess.PIPE,
            env={**os.environ, **variables},
            start_new_session=True,
        )
        self.child = psutil.Process(first_number(self.parent))

    def ended(self) -> bool:
        """Whether both have ended; waits for it."""
        try:
            self.parent.wait(DEADLINE_S)
            return ended(self.child)
        except subprocess.TimeoutExpired:
            return False

    def kill(self) -> None:
        os.killpg(self.parent.pid, signal.SIGKILL)
        self.parent.wait(DEADLINE_S)


def first_number(program: subprocess.Popen[bytes]) -> int:
    """What `program` writes first."""
    assert program.stdout is not None
    with program.stdout as output:
        return int(output.readline())


def ended(process: psutil.Process) -> bool:
    """Whether a process that is no child of this one has ended; waits for it."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return bool(poll.poll(DEADLINE_S * 1000))
    finally:
        os.close(pidfd)


@pytest.fixture
def mark() -> str:
    return f"EACHPROMPT_TEST={uuid.uuid4().hex}"


@pytest.fixture
def family() -> Iterator[Family]:
    family = Family()
    yield family
    if family.parent.poll() is None:
        family.kill()


def test_a_reported_group_ends_with_its_owner_and_a_removed_one_does_not(family: Family) -> None:
    reported = Family()
    reaper = OrphanReaper.of_groups()
    reaper.add(family.parent.pid)
    reaper.add(reported.parent.pid)
    reaper.remove(family.parent.pid)
    assert reaper.close(DEADLINE_S)
    assert reported.ended()
    assert family.parent.poll() is None and family.child.is_running()


def test_a_group_that_has_ended_keeps_no_other_from_its_end() -> None:
    gone, left = Family(), Family()
    reaper = OrphanReaper.of_groups()
    reaper.add(gone.parent.pid)
    reaper.add(left.parent.pid)
    gone.kill()
    assert reaper.close(DEADLINE_S)
    assert left.ended()


@pytest.mark.parametrize("selector", ["groups", "marked"])
def test_a_killed_owner_leaves_nothing_behind(selector: str, mark: str) -> None:
    name, _, value = mark.partition("=")
    program = f"""
    import os, subprocess, sys
    from streams.processes.orphan_reaper import OrphanReaper
    marked = {selector == "marked"}
    reaper = OrphanReaper.of_marked({mark!r}) if marked else OrphanReaper.of_groups()
    family = subprocess.Popen(
        [sys.executable, "-c", {SLEEPER!r}], start_new_session=True, env={{**os.environ, {name!r}: {value!r}}}
    )
    if not marked:
        reaper.add(family.pid)
    family.wait()
    """
    owner = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE)
    sleeper = psutil.Process(first_number(owner))
    below = psutil.Process(owner.pid).children(recursive=True)
    assert sleeper in below and len(below) == 3, "the reaper, the sleeper's parent and the sleeper"
    owner.kill()
    owner.wait(DEADLINE_S)
    assert all(ended(process) for process in below)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("selector", ["groups", "marked"])
def test_a_signal_does_not_end_the_reaper_before_its_owner(selector: str, number: signal.Signals, mark: str) -> None:
    name, _, value = mark.partition("=")
    family = Family(**{name: value})
    reaper = OrphanReaper.of_marked(mark) if selector == "marked" else OrphanReaper.of_groups()
    if selector == "groups":
        reaper.add(family.parent.pid)
    process = psutil.Process(reaper._process.pid)
    await_ignored(process, number)
    process.send_signal(number)
    assert family.parent.poll() is None
    assert reaper.close(DEADLINE_S)
    assert family.ended()


def await_ignored(process: psutil.Process, number: signal.Signals) -> None:
    """Wait until `process` ignores `number`, as it does from its first lines on."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        status = Path(f"/proc/{process.pid}/status").read_text()
        ignored = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigIgn:"))
        if ignored >> (number - 1) & 1:
            return
        assert time.monotonic() < deadline, f"signal {number} is never ignored"
        os.sched_yield()


def test_marked_processes_are_killed_until_none_is_left_and_others_are_spared(family: Family, mark: str) -> None:
    name, _, value = mark.partition("=")
    bearers = [Family(**{name: value}) for _ in range(2)]
    spared = Family(**{name: value + "0"})
    assert len(marked(mark.encode())) == 4
    assert kill_marked(mark.encode())
    assert marked(mark.encode()) == []
    assert all(bearer.ended() for bearer in bearers)
    assert family.parent.poll() is None and spared.parent.poll() is None
    spared.kill()


def test_children_that_are_forked_meanwhile_are_no_exception(mark: str) -> None:
    name, _, value = mark.partition("=")
    program = """
    import os, time
    print(1, flush=True)
    while os.fork():
        time.sleep(0.001)
    time.sleep(600)
    """
    forker = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, env={**os.environ, name: value}
    )
    first_number(forker)
    reaper = OrphanReaper.of_marked(mark)
    assert reaper.close(DEADLINE_S)
    assert marked(mark.encode()) == []
    forker.wait(DEADLINE_S)


def test_what_outlives_the_deadline_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a process in uninterruptible sleep does."""
    gone = subprocess.Popen(["true"])
    gone.wait(DEADLINE_S)
    monkeypatch.setattr(orphan_reaper, "GRACE_S", 0.0)
    monkeypatch.setattr(orphan_reaper, "marked", lambda mark: [gone.pid])
    assert not kill_marked(b"A=b")


def test_a_program_without_a_selector_is_refused() -> None:
    command = [sys.executable, "-I", "-S", orphan_reaper.__file__]
    assert subprocess.run(command, stdin=subprocess.DEVNULL, timeout=DEADLINE_S).returncode == 2
