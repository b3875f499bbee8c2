"""How the other ranks find rank 0: its endpoint, and the wait until it listens there.

Across machines its address is configured. On one machine rank 0 takes a free port and publishes it in a file of the run
directory; inotify reports when that file changes.
"""

import asyncio
import ctypes
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

RENDEZVOUS_FILE: Final = "learner-rendezvous.json"
LOOPBACK: Final = "127.0.0.1"
_IN_CLOSE_WRITE, _IN_MOVED_TO = 0x008, 0x080
_RETRY_S: Final = 0.2
_EVENTS_BYTES: Final = 65_536


@dataclass(frozen=True)
class Endpoint:
    """Where rank 0 listens: `host`:`port`, or, with `file`, this machine and the port that the file names."""

    host: str
    port: int
    file: Path | None = None

    def __str__(self) -> str:
        return str(self.file) if self.file else f"{self.host}:{self.port}"

    @property
    def listen(self) -> str:
        """The address that rank 0 binds: loopback on one machine, else every interface."""
        return LOOPBACK if self.host == LOOPBACK else ""

    def read_port(self) -> int | None:
        """The port to try now; None where rank 0 has not published one yet."""
        if self.file is None:
            return self.port
        try:
            return int(json.loads(self.file.read_bytes())["port"])
        except FileNotFoundError:
            return None

    def publish_port(self, port: int) -> None:
        """Called by rank 0: write the port that it listens on into the file, atomically."""
        if self.file is not None:
            temporary = self.file.with_suffix(".tmp")
            temporary.write_text(json.dumps({"port": port}), encoding="utf-8")
            temporary.replace(self.file)


def rank0_endpoint(directory: Path, port: int) -> Endpoint:
    """Rank 0's endpoint: MASTER_ADDR and MASTER_PORT (default `port`) where torchrun or a pod sets them;
    else `port` of this machine; with `port` 0 a free port that is published in `directory`."""
    if "MASTER_ADDR" in os.environ:
        return Endpoint(os.environ["MASTER_ADDR"], int(os.environ.get("MASTER_PORT", port)))
    if port:
        return Endpoint(LOOPBACK, port)
    directory.mkdir(parents=True, exist_ok=True)
    return Endpoint(LOOPBACK, 0, directory / RENDEZVOUS_FILE)


class DirectoryChanges:
    """Writes into a directory since the last wait, as inotify reports them."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def notify(self) -> None:
        """A file was written."""
        self._changed.set()

    async def wait(self) -> None:
        """Wait for the next write; return at once where there was one since the last wait."""
        await self._changed.wait()
        self._changed.clear()


class RetryInterval:
    """The same interface for a fixed port, which cannot be watched: every wait is one retry interval."""

    async def wait(self) -> None:
        """Wait for one retry interval."""
        await asyncio.sleep(_RETRY_S)


@contextmanager
def endpoint_changes(endpoint: Endpoint) -> Iterator[DirectoryChanges | RetryInterval]:
    """What to await before connecting to rank 0 again. OSError: the kernel refuses another inotify watch."""
    if endpoint.file is None:
        yield RetryInterval()
        return
    loop, changed = asyncio.get_running_loop(), DirectoryChanges()
    descriptor = _watch(endpoint.file.parent)

    def on_readable() -> None:
        os.read(descriptor, _EVENTS_BYTES)
        changed.notify()

    try:
        loop.add_reader(descriptor, on_readable)
        yield changed
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def _watch(directory: Path) -> int:
    """A descriptor that becomes readable when a file is written: inotify(7), which the standard library lacks."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = int(libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
    mask = _IN_CLOSE_WRITE | _IN_MOVED_TO
    if descriptor < 0 or libc.inotify_add_watch(descriptor, os.fsencode(directory), mask) < 0:
        raise OSError(ctypes.get_errno(), f"cannot watch {directory}: {os.strerror(ctypes.get_errno())}")
    return descriptor
