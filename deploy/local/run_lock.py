"""One `up` or `demo` at a time on a run directory, whatever kind of broker it has: taken before anything is written.

The kernel holds the lock (flock) and releases it with the process, however that ends, so none is ever left behind. What
the file says is for the message alone.
"""

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from deploy.errors import ConfigError


class Holder(msgspec.Struct, frozen=True):
    """Who holds a run directory, since when (Unix seconds)."""

    pid: int
    host: str
    since_s: float


@contextmanager
def run_lock(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, whose directory is made, while the block lasts.

    ConfigError: another process holds it, or the directory cannot be written.
    """
    directory = path.parent
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise ConfigError(
            f"--dir is {directory}, which cannot be written ({error.strerror}: {error.filename}); "
            "allowed: a directory of this user's with room"
        ) from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"--dir is {directory}, whose run {_said(descriptor)}; allowed: a run that is not up (stop it first), "
                "or another directory"
            ) from None
        holder = Holder(pid=os.getpid(), host=socket.gethostname(), since_s=time.time())
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, msgspec.json.encode(holder) + b"\n", 0)
        yield
    finally:
        os.close(descriptor)


def _said(descriptor: int) -> str:
    try:
        holder = msgspec.json.decode(os.pread(descriptor, 4096, 0), type=Holder)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return "another process keeps up"
    since = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(holder.since_s))
    return f"process {holder.pid} on {holder.host} has kept up since {since}"
