"""Where rank 0 is to be found, and the wait until it is there.

On several machines its address is configured. On one machine rank 0 takes a free port and tells it through a file of
the run directory; the kernel says when that file changes.
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
class Place:
    """Where rank 0 listens: at `host`:`port`, or, with `file`, on this machine at the port that the file names."""

    host: str
    port: int
    file: Path | None = None

    def __str__(self) -> str:
        return str(self.file) if self.file else f"{self.host}:{self.port}"

    @property
    def listen(self) -> str:
        """What rank 0 binds to: every interface where the others may be elsewhere."""
        return LOOPBACK if self.host == LOOPBACK else ""

    def told(self) -> int | None:
        """The port to try now; None where rank 0 has not told it yet."""
        if self.file is None:
            return self.port
        try:
            return int(json.loads(self.file.read_bytes())["port"])
        except FileNotFoundError:
            return None

    def tell(self, port: int) -> None:
        """Rank 0: this is where I listen."""
        if self.file is not None:
            temporary = self.file.with_suffix(".tmp")
            temporary.write_text(json.dumps({"port": port}), encoding="utf-8")
            temporary.replace(self.file)


def place_of(directory: Path, port: int) -> Place:
    """MASTER_ADDR and MASTER_PORT (or `port`) where a pod sets them, else `port` of this machine; 0: by file."""
    if "MASTER_ADDR" in os.environ:
        return Place(os.environ["MASTER_ADDR"], int(os.environ.get("MASTER_PORT", port)))
    if port:
        return Place(LOOPBACK, port)
    directory.mkdir(parents=True, exist_ok=True)
    return Place(LOOPBACK, 0, directory / RENDEZVOUS_FILE)


class Changes:
    """Told of whatever was written into a directory since it was last asked."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def noted(self) -> None:
        """Something was."""
        self._changed.set()

    async def next(self) -> None:
        """Wait for the next change, or for one that came since the last wait."""
        await self._changed.wait()
        self._changed.clear()


class Retries:
    """The same for a port of another machine, on which nothing can be awaited: it is tried again now and then."""

    async def next(self) -> None:
        """See the class."""
        await asyncio.sleep(_RETRY_S)


@contextmanager
def changes(place: Place) -> Iterator[Changes | Retries]:
    """What to wait for before rank 0 is looked for again. OSError: the kernel watches no more directories."""
    if place.file is None:
        yield Retries()
        return
    loop, changed = asyncio.get_running_loop(), Changes()
    descriptor = _watch(place.file.parent)

    def heard() -> None:
        os.read(descriptor, _EVENTS_BYTES)
        changed.noted()

    try:
        loop.add_reader(descriptor, heard)
        yield changed
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def _watch(directory: Path) -> int:
    """inotify(7), which the standard library does not have: a descriptor that is readable when a file is written."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = int(libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
    mask = _IN_CLOSE_WRITE | _IN_MOVED_TO
    if descriptor < 0 or libc.inotify_add_watch(descriptor, os.fsencode(directory), mask) < 0:
        raise OSError(ctypes.get_errno(), f"cannot watch {directory}: {os.strerror(ctypes.get_errno())}")
    return descriptor
