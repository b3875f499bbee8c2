"""Small programs for the supervisor, and what they and their processes say."""

import os
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import psutil

from deploy.local.restarts import RestartPolicy
from deploy.local.supervisor import ProcessSpec, Unit

POLICY = RestartPolicy(first_s=0.05, max_s=0.2, quick_s=60.0, quick_failures=3)
DEADLINE_S = 60.0

LINGER = "import signal; print('up', flush=True); signal.pause()"
STUBBORN = (
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True)\nwhile True: signal.pause()"
)
POLITE = (
    "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); print('up', flush=True); signal.pause()"
)
WITH_CHILD = """
import subprocess, sys, signal
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
print(child.pid, flush=True)
signal.pause()
"""


def spec(directory: Path, name: str, program: str) -> ProcessSpec:
    argv = (sys.executable, "-c", textwrap.dedent(program))
    return ProcessSpec(name, argv, dict(os.environ), directory / f"{name}.log", directory / "pids" / f"{name}.pid")


def unit(directory: Path, name: str, *programs: str) -> Unit:
    if len(programs) == 1:
        return Unit(name, (spec(directory, name, programs[0]),))
    return Unit(name, tuple(spec(directory, f"{name}-{k}", program) for k, program in enumerate(programs)))


def has_written(directory: Path, name: str, times: int = 1) -> Callable[[], bool]:
    log = directory / f"{name}.log"
    # Whole lines: where output is unbuffered the end of a line is written by itself, and a kill may come before it.
    return lambda: log.exists() and log.read_text().count("\n") >= times


def pid_of(directory: Path, name: str) -> int:
    return int((directory / "pids" / f"{name}.pid").read_text())


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
