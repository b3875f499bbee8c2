"""What the two local brokers share: one child process that serves one run directory."""

from __future__ import annotations

import abc
import fcntl
import signal
import time
from io import TextIOWrapper
from pathlib import Path
from typing import ClassVar, Literal

from streams.broker.base import Broker, BrokerError
from streams.broker.endpoint import Endpoint, broker_pid_file, find_endpoint, last_endpoint, write_endpoint
from streams.broker.ports import HOST, free_port, is_free
from streams.broker.ready import wait_ready
from streams.broker.settings import BrokerSettings
from streams.processes.child import Child, ChildError, running_pid, stop_pid

_PORT_ATTEMPTS = 3
_STARTING_S = 30.0
_LENT_S = 10.0
_ASK_EVERY_S = 0.1


class _PortTaken(BrokerError):
    """Somebody else took the port between choosing it and listening on it."""


class LocalBroker(Broker):
    """A broker process below `directory`: data in `broker/`, log in `logs/broker.log`, id in `pids/broker.pid`.

    The process dies with this one. A lock on `broker/lock` keeps two of them from serving the same directory. Who only
    reads lends it (`lend`): whoever starts the directory's broker then ends that process and takes its place, at the
    same address.
    """

    kind: ClassVar[Literal["kafka", "embedded"]]

    def __init__(self, settings: BrokerSettings, directory: Path) -> None:
        self.settings = settings
        self.directory = directory.resolve()
        self.home = self.directory / "broker"
        self.log = self.directory / "logs" / "broker.log"
        self._child: Child | None = None
        self._lock: TextIOWrapper | None = None
        self._port: int | None = None

    @abc.abstractmethod
    def _command(self, port: int, deadline_s: float) -> list[str]:
        """The program and arguments that serve on `port`; prepares the data directory if need be."""

    @property
    def bootstrap(self) -> str:
        if self._port is None:
            raise BrokerError(f"the {self.kind} broker of {self.directory} has not been started, so it has no address")
        return f"{HOST}:{self._port}"

    @property
    def pid(self) -> int | None:
        """The id of the broker's process while it runs."""
        return self._child.pid if self._child is not None and self._child.alive() else None

    @property
    def exit_code(self) -> int | None:
        return None if self._child is None else self._child.returncode

    def alive(self) -> bool:
        return self.pid is not None

    def start(self, deadline_s: float = 60.0) -> None:
        if self.alive():
            return
        deadline = time.monotonic() + deadline_s
        self._acquire(min(deadline_s, _STARTING_S))
        try:
            for attempt in range(1, _PORT_ATTEMPTS + 1):
                port = self._choose_port()
                try:
                    self._launch(port, max(0.1, deadline - time.monotonic()))
                    return
                except _PortTaken:
                    if self.settings.port or attempt == _PORT_ATTEMPTS:
                        raise
                    self._port = None
        except ChildError as error:
            self.stop(0)
            raise BrokerError(f"the {self.kind} broker did not start: {error}") from error
        except BaseException:
            self.stop(0)
            raise

    def stop(self, deadline_s: float = 10.0) -> None:
        try:
            if self._child is not None:
                self._child.stop(deadline_s)
        finally:
            self._child = None
            if self._lock is not None:
                self._lock.close()
                self._lock = None

    def lend(self) -> None:
        """Let whoever starts this directory's broker end this one and take its place; until then it runs on."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def kill(self) -> None:
        """Ends the process with SIGKILL and waits until it is gone: what a crash does. `start` brings it back."""
        if self._child is not None:
            self._child.stop(0, signal.SIGKILL)

    def _acquire(self, starting_s: float) -> None:
        """Takes the directory's lock; whoever holds it is the only one to start a broker there.

        A holder whose broker is not up yet may be about to lend it, so it is waited for, `starting_s` at most.
        """
        self.home.mkdir(parents=True, exist_ok=True)
        if self._lock is not None:
            return
        lock = (self.home / "lock").open("a")
        deadline, up = time.monotonic() + starting_s, False
        while not _locked(lock):
            # Asked once more after it was seen to be up: it is lent a moment later, if at all.
            if up or time.monotonic() > deadline:
                lock.close()
                pid = running_pid(broker_pid_file(self.directory))
                runs = f"process {pid}" if pid is not None else "it is just starting"
                raise BrokerError(f"the broker of {self.directory} is already run by another process ({runs})")
            up = find_endpoint(self.directory) is not None
            time.sleep(_ASK_EVERY_S)
        self._lock = lock
        # It was lent, or its starter is gone: then it is dying, and the kernel may need a moment.
        orphan = running_pid(broker_pid_file(self.directory))
        if orphan is not None and not stop_pid(orphan, _LENT_S):
            raise BrokerError(f"an earlier broker of {self.directory}, process {orphan}, cannot be stopped")

    def _choose_port(self) -> int:
        """The configured port, else the one clients of this directory already know, else a free one."""
        if wanted := self.settings.port:
            if not is_free(wanted):
                raise BrokerError(
                    f"port {wanted} of {HOST} is in use; set broker.port to another one, or to 0 for a free one"
                )
            return wanted
        if self._port is not None and is_free(self._port):
            return self._port
        last = last_endpoint(self.directory)
        return last.port if last is not None and is_free(last.port) else free_port()

    def _launch(self, port: int, deadline_s: float) -> None:
        deadline = time.monotonic() + deadline_s
        self.log.parent.mkdir(parents=True, exist_ok=True)
        command = self._command(port, deadline_s)
        log_start = self.log.stat().st_size if self.log.exists() else 0
        pid_file = broker_pid_file(self.directory)
        child = Child.start(command, log=self.log, pid_file=pid_file, name=f"{self.kind} broker", cwd=self.home)
        self._child, self._port = child, port

        def pause(seconds: float) -> None:
            if child.wait(seconds) is not None:
                raise self._death(child, port, log_start)

        try:
            wait_ready(self.bootstrap, max(0.1, deadline - time.monotonic()), pause)
        except BrokerError as error:
            if not child.alive():
                raise
            raise BrokerError(f"{error}; see {self.log}") from None
        if not child.alive():
            # Another program's server answered on this port.
            raise self._death(child, port, log_start)
        write_endpoint(self.directory, Endpoint(self.kind, port, self.bootstrap, child.pid))

    def _death(self, child: Child, port: int, log_start: int) -> BrokerError:
        with self.log.open("rb") as log:
            log.seek(log_start if self.log.stat().st_size >= log_start else 0)
            lines = log.read().decode(errors="replace").strip().splitlines()
        if any("Address already in use" in line for line in lines):
            return _PortTaken(f"port {port} of {HOST}, or the controller's, was taken while the broker started")
        errors = [line for line in lines if "ERROR" in line or "FATAL" in line or "Exception" in line]
        reason = (errors or lines or ["it wrote nothing"])[0]
        return BrokerError(
            f"the {self.kind} broker ended with code {child.returncode}: {reason[:300]} (see {self.log})"
        )


def _locked(file: TextIOWrapper) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
