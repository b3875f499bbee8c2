"""A child process that cannot outlive its parent: own log file, pid file, graceful stop with a deadline.

    child = Child.start(["java", "-version"], log=Path("logs/java.log"), pid_file=Path("pids/java.pid"))
    child.wait(deadline_s=5)     # exit code, or None when it still runs
    child.stop(deadline_s=10)    # SIGTERM, then SIGKILL to its whole process group

Linux only: it rests on prctl(PR_SET_PDEATHSIG) and pidfd_open(2).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import select
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Self

import psutil

from streams.errors import StreamsError

_DIE_WITH_PARENT = Path(__file__).with_name("die_with_parent.py")


class ChildError(StreamsError):
    """A child process could not be started or did not end."""


class _Forker:
    """The one thread that forks every child of this process.

    The kernel sends the death signal when the *thread* that forked ends, not the process. Forking from a thread that
    lives as long as the process makes `Child.start` safe from any thread, executors' short-lived ones included.
    """

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[tuple[Future[subprocess.Popen[bytes]], list[str], _Launch]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        os.register_at_fork(after_in_child=self._forget_thread)

    def fork(self, argv: list[str], launch: _Launch) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="forker", daemon=True)
                self._thread.start()
        done: Future[subprocess.Popen[bytes]] = Future()
        self._work.put((done, argv, launch))
        return done.result(timeout=30)

    def _serve(self) -> None:
        while True:
            done, argv, launch = self._work.get()
            try:
                done.set_result(launch(argv))
            except OSError as error:
                done.set_exception(error)

    def _forget_thread(self) -> None:
        self._thread = None
        self._lock = threading.Lock()


class _Launch:
    """How to start a program: where it runs, with which environment, and where its output goes."""

    def __init__(self, log: Path, env: Mapping[str, str] | None, cwd: Path | None) -> None:
        self.log, self.env, self.cwd = log, env, cwd

    def __call__(self, argv: list[str]) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as output:
            return subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=None if self.env is None else dict(self.env),
                cwd=self.cwd,
                # Ctrl-C at the terminal must reach the supervisor alone, which then stops its children in order.
                start_new_session=True,
            )


_forker = _Forker()


class Child:
    """One running child process. Made by `Child.start`; every method may be called from any thread."""

    def __init__(self, process: subprocess.Popen[bytes], name: str, log: Path, pid_file: Path | None) -> None:
        self._process = process
        self._reaping = threading.Lock()
        self.name = name
        self.log = log
        self.pid_file = pid_file

    @classmethod
    def start(
        cls,
        argv: Sequence[str],
        *,
        log: Path,
        pid_file: Path | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        name: str | None = None,
        death_signal: signal.Signals = signal.SIGKILL,
    ) -> Self:
        """Starts `argv` (a complete environment in `env`, or this process's own) and returns at once.

        Its output is appended to `log`. `pid_file` holds its process id until it was seen to have ended. The kernel
        sends `death_signal` to it when this process ends, however that happens; its own children get nothing, so a
        program that has some must pass that on. Raises `ChildError` when the program does not exist, or when
        `pid_file` names a process that is alive; `OSError` when there is no room for its log or its pid file.
        """
        program = shutil.which(argv[0])
        if program is None:
            raise ChildError(f"program {argv[0]!r} was not found or is not executable")
        if pid_file is not None and (other := running_pid(pid_file)) is not None:
            raise ChildError(f"{pid_file} says that process {other} already runs; stop it first")
        log.parent.mkdir(parents=True, exist_ok=True)
        shim = [sys.executable, "-I", "-S", str(_DIE_WITH_PARENT), str(int(death_signal)), str(os.getpid())]
        process = _forker.fork([*shim, program, *argv[1:]], _Launch(log, env, cwd))
        child = cls(process, name or Path(argv[0]).name, log, pid_file)
        if pid_file is not None:
            try:
                write_pid_file(pid_file, process.pid)
            except OSError:
                child.stop(0, signal.SIGKILL)
                raise
        return child

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit code, the negated signal number when a signal ended it, or None while it runs."""
        return self.wait(0)

    def alive(self) -> bool:
        return self.returncode is None

    def wait(self, deadline_s: float) -> int | None:
        """Blocks until it has ended, at most `deadline_s` seconds; returns its exit code, or None at the deadline."""
        if self._process.returncode is not None or self._ended(deadline_s):
            return self._reap()
        return None

    async def ended(self) -> int:
        """Waits on the running event loop, without a thread and without a deadline; returns the exit code."""
        loop = asyncio.get_running_loop()
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return self._reap()
        readable = asyncio.Event()
        loop.add_reader(pidfd, readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(pidfd)
            os.close(pidfd)
        return self._reap()

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the process; nothing happens when it has ended."""
        if self.alive():
            self._process.send_signal(number)

    def stop(self, deadline_s: float, number: signal.Signals = signal.SIGTERM) -> int:
        """Asks it to end, kills its whole process group at the deadline, and returns its exit code.

        Whatever is left of the process group is killed also when the process itself ended in time. Raises
        `ChildError` when even SIGKILL did not end it within 10 s (a process in uninterruptible sleep).
        """
        self.send(number)
        if self.wait(deadline_s) is None:
            self.kill()
        code = self.wait(10)
        if code is None:
            raise ChildError(f"{self.name} (process {self.pid}) did not end within 10 s of SIGKILL")
        return code

    def kill(self) -> None:
        """SIGKILL to the whole process group, without waiting for the end."""
        if self.alive():
            _kill_group(self.pid)

    def _ended(self, deadline_s: float) -> bool:
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return True
        try:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            return bool(poll.poll(max(0.0, deadline_s) * 1000))
        finally:
            os.close(pidfd)

    def _reap(self) -> int:
        with self._reaping:
            if self._process.returncode is None:
                # Before the wait, while the id of the group still belongs to the dead leader and to nobody else.
                _kill_group(self.pid)
                self._process.wait()
                if self.pid_file is not None:
                    _remove_pid_file(self.pid_file, self.pid)
            return self._process.returncode


def _kill_group(group: int) -> None:
    # The group does not exist yet for an instant after the fork, nor after all of its members were reaped.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def write_pid_file(path: Path, pid: int) -> None:
    """Writes the process id and a newline, so that a reader sees either the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(f"{pid}\n")
    partial.replace(path)


def _remove_pid_file(path: Path, pid: int) -> None:
    """Unless somebody else's process has taken this one's place by now."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        if int(path.read_text()) == pid:
            path.unlink()


def running_pid(path: Path) -> int | None:
    """The process id in a pid file, or None when there is no file or its process is gone.

    A process that began after the file was written is another one that got the same id.
    """
    try:
        pid, written = int(path.read_text()), path.stat().st_mtime
        process = psutil.Process(pid)
        # The kernel counts a process's start in clock ticks since boot: a second covers the rounding.
        same = process.create_time() <= written + 1 and process.status() != psutil.STATUS_ZOMBIE
    except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
        return None
    return pid if same else None


def stop_pid(pid: int, deadline_s: float) -> bool:
    """Stops a process that is not a child of this one: SIGTERM, then SIGKILL; False when it still runs after both."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        for number, patience_s in ((signal.SIGTERM, deadline_s), (signal.SIGKILL, 10.0)):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, number)
            if poll.poll(patience_s * 1000):
                return True
        return False
    finally:
        os.close(pidfd)
