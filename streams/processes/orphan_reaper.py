"""Program that kills the processes which their owner would leave behind, when the owner ends, however that happens.

    python -I -S orphan_reaper.py groups                # stdin: lines `+GROUP` and `-GROUP`; its end is the owner's end
    python -I -S orphan_reaper.py marked NAME=VALUE     # stdin: nothing; its end is the owner's end

The kernel's death signal (`streams.processes.die_with_parent`) reaches a killed process's children that asked for it
and not their own children, as an engine's workers or a pool of verifiers. They are found in one of two ways:

- `groups`: by the process groups that the owner reports, for a supervisor that starts every process itself;
- `marked`: by a variable that all of them inherit, for programs that start processes themselves (vLLM's cannot ask for
  the death signal before they have imported vLLM, which takes 10 s and more).

It runs in a session of its own and ignores SIGINT, SIGTERM and SIGHUP, so that nothing ends it before its owner; with
the standard library alone, in about 8 MB. The owner's side:

    reaper = OrphanReaper.of_groups()
    reaper.add(child.pid)       # its process group is killed if this process dies
    reaper.remove(child.pid)
    reaper.close(5.0)
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

GRACE_S: Final = 10.0
"""How long marked processes may take to vanish after SIGKILL."""


class OrphanReaper:
    """The reaping process, seen from the owner."""

    def __init__(self, *arguments: str) -> None:
        # Unbuffered, and the pipe's write end is closed on exec: no child can hold it open beyond this process. The
        # environment is empty, for the reaper must not bear the mark that it looks for.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(__file__).resolve()), *arguments],
            stdin=subprocess.PIPE,
            env={},
            start_new_session=True,
            bufsize=0,
        )

    @classmethod
    def of_groups(cls) -> "OrphanReaper":
        """One that kills the process groups that are added to it."""
        return cls("groups")

    @classmethod
    def of_marked(cls, mark: str) -> "OrphanReaper":
        """One that kills every process whose environment holds `mark`, a whole `NAME=value`."""
        return cls("marked", mark)

    def add(self, group: int) -> None:
        """Have this process group killed when the owner ends."""
        self._write(f"+{group}\n")

    def remove(self, group: int) -> None:
        """Forget it: the group has ended, and its number may be given to another one."""
        self._write(f"-{group}\n")

    def close(self, deadline_s: float) -> bool:
        """End the reaper, and with it whatever it still knows; False where that was not done within `deadline_s`.

        One that is late is left to finish by itself.
        """
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            return self._process.wait(deadline_s) == 0
        except subprocess.TimeoutExpired:
            return False

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ValueError):
            self._process.stdin.write(line.encode())


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
    """Kill until none is left, a just forked child of a killed one included; False when some outlive the deadline."""
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


def kill_groups(groups: Iterable[int]) -> None:
    """SIGKILL to every process of the groups; those that have ended are passed over."""
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


def main(arguments: list[str]) -> int:
    """Wait for the end of stdin, then kill; the exit code is 0 where all are gone."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    match arguments:
        case ["groups"]:
            kill_groups(_groups_at_end())
            return 0
        case ["marked", mark]:
            while sys.stdin.buffer.read(1):
                pass
            return 0 if kill_marked(mark.encode()) else 1
        case _:
            return 2


def _groups_at_end() -> set[int]:
    """What was added and not removed by the end of stdin."""
    groups: set[int] = set()
    for line in sys.stdin:
        group = int(line[1:])
        if line.startswith("+"):
            groups.add(group)
        else:
            groups.discard(group)
    return groups


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
