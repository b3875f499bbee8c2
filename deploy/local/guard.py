"""Kills the process groups it was told of when the process that told it ends, however that happens.

The kernel's death signal reaches the children of a killed supervisor but not their own children (an engine's worker
processes, a pool of verifiers); this small process does. It reads `+GROUP` and `-GROUP` lines from its standard input,
whose end is the end of its parent. Standard library alone, about 8 MB.

    guard = Guard.start()
    guard.add(child.pid)        # its process group is killed if this process dies
    guard.remove(child.pid)
    guard.close()
"""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path


class Guard:
    """The guarding process, seen from the one that is guarded."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    @classmethod
    def start(cls) -> "Guard":
        """Starts it in a session of its own, so that no terminal signal ends it before its parent."""
        argv = [sys.executable, "-I", "-S", str(Path(__file__).resolve())]
        # Unbuffered, and the pipe's write end is closed on exec: no child can hold it open beyond this process.
        return cls(subprocess.Popen(argv, stdin=subprocess.PIPE, start_new_session=True, bufsize=0))

    def add(self, group: int) -> None:
        """Guards a process group."""
        self._tell(f"+{group}\n")

    def remove(self, group: int) -> None:
        """Forgets it: the group has ended, and its number may come back as somebody else's."""
        self._tell(f"-{group}\n")

    def close(self) -> None:
        """Ends the guard, and with it whatever it still guards."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(timeout=5)

    def _tell(self, line: str) -> None:
        with contextlib.suppress(BrokenPipeError, ValueError):
            if self._process.stdin is not None:
                self._process.stdin.write(line.encode())


def main() -> None:
    """The guarding process."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        group = int(line[1:])
        if line.startswith("+"):
            groups.add(group)
        else:
            groups.discard(group)
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main()
