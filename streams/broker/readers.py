"""The tools that read a run directory at the same time: one starts the broker, and ends it after the last of them."""

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self


class Readers:
    """Two locks in `broker/`, released by the kernel however a tool ends: `starting` and `readers`."""

    def __init__(self, directory: Path) -> None:
        home = directory / "broker"
        home.mkdir(parents=True, exist_ok=True)
        self._starting = os.open(home / "starting", os.O_RDWR | os.O_CREAT, 0o644)
        self._readers = os.open(home / "readers", os.O_RDWR | os.O_CREAT, 0o644)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._readers)
        os.close(self._starting)

    @contextmanager
    def alone(self, seconds: float) -> Iterator[None]:
        """Only one tool at a time looks for a broker and starts it; in any case after so long. Then this one reads."""
        _lock(self._starting, fcntl.LOCK_EX, seconds)
        try:
            fcntl.flock(self._readers, fcntl.LOCK_SH)
            yield
        finally:
            fcntl.flock(self._starting, fcntl.LOCK_UN)

    def last(self, seconds: float) -> bool:
        """Wait until no other tool reads, for so long at most; whether that is so."""
        fcntl.flock(self._readers, fcntl.LOCK_UN)
        return _lock(self._readers, fcntl.LOCK_EX, seconds)


def _lock(descriptor: int, kind: int, seconds: float) -> bool:
    """Whether the lock was had in time. In a thread of its own: a wait for a file lock has no deadline."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        waiting = threading.Thread(target=fcntl.flock, args=(descriptor, kind), daemon=True)
        waiting.start()
        waiting.join(seconds)
        return not waiting.is_alive()
