"""Program that kills an engine's processes when the process that owns them is gone or asks for it.

    python -I -S reaper.py MARK      # stdin: a pipe whose other end the owner holds

vLLM starts its processes itself, so they cannot ask the kernel to die with their parent before they have imported it
(10 s and more). They all inherit the environment, and so a mark by which they are found. Runs with the standard library
alone, in its own session: Ctrl-C at a terminal must not end it first.
"""

import os
import select
import signal
import sys
import time
from pathlib import Path

GRACE_S = 10.0


def marked(mark: bytes) -> list[int]:
    """Processes whose environment holds `mark` (a whole `NAME=value`), without this one."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                # Ended meanwhile, or another user's.
                continue
    return found


def kill_marked(mark: bytes) -> bool:
    """Kills until none is left, a just forked child of a killed one included; False when some outlive the deadline."""
    deadline = time.monotonic() + GRACE_S
    while found := marked(mark):
        if time.monotonic() > deadline:
            return False
        watched = select.poll()
        descriptors = []
        for pid in found:
            try:
                descriptors.append(os.pidfd_open(pid))
                signal.pidfd_send_signal(descriptors[-1], signal.SIGKILL)
                watched.register(descriptors[-1], select.POLLIN)
            except ProcessLookupError:
                continue
        watched.poll(1000)
        for descriptor in descriptors:
            os.close(descriptor)
    return True


def main(mark: str) -> int:
    """Waits for the end of stdin, then kills; the exit code says whether all are gone."""
    while sys.stdin.buffer.read(1):
        pass
    return 0 if kill_marked(mark.encode()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
