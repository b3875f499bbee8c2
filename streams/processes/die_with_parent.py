"""Program that becomes another program and is killed by the kernel when the one that started it ends.

    python -I -S die_with_parent.py SIGNAL PARENT_PID PROGRAM [ARGUMENT...]

The death signal must be asked for by the child itself (prctl(2), PR_SET_PDEATHSIG) and survives exec. Doing it here
rather than in `subprocess`'s `preexec_fn` keeps Python code out of the forked copy of a threaded parent, where it can
deadlock. Runs with the standard library alone, so that it costs about 20 ms.
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    death_signal, parent_pid = int(arguments[0]), int(arguments[1])
    program = arguments[2:]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0) != 0:
        sys.exit(f"prctl(PR_SET_PDEATHSIG) failed: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent_pid:
        # The parent ended before the request was in force, so no signal will ever come.
        sys.exit(f"parent {parent_pid} ended before {program[0]} started")
    try:
        os.execvp(program[0], program)
    except OSError as error:
        sys.exit(f"cannot run {program[0]}: {error.strerror}")


if __name__ == "__main__":
    main(sys.argv[1:])
