"""Fault points: named places in the critical windows of the code, where a test makes the process die.

    reach("transaction.sent")          # in the code: nothing happens, unless a test has armed this point

    EACHPROMPT_FAULTS=/tmp/faults eachprompt run groups --dir runs/one
    arm(Path("/tmp/faults"), "groups", "transaction.sent", "kill", hit=3)     # in the test, before or while it runs

A fault is a file of that directory, `<service>:<point>.armed`, so that it reaches a process that already runs. It is
renamed to `.fired` before it acts: it fires once, and the restarted service is spared. Without the variable a point
costs one comparison.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal, get_args

from streams.errors import StreamsError

VARIABLE: Final = "EACHPROMPT_FAULTS"

Action = Literal["kill", "stop", "raise"]

POINTS: Final = (
    "transaction.begun",
    "transaction.sent",
    "transaction.committed",
    "worker.handled",
    "worker.committing",
    "blobs.written",
    "rollouts.written",
    "learner.training",
    "learner.trained",
    "learner.announced",
    "checkpoint.shards",
    "checkpoint.manifest",
    "checkpoint.renamed",
    "publisher.uploaded",
    "publisher.published",
)
"""Every fault point: where it is, and what has just happened when it is reached."""


class FaultError(StreamsError):
    """What an armed point raises for the action `raise`."""


class Faults:
    """The points of one process: what is armed for `service` in `directory`, and how often each was reached."""

    def __init__(self, directory: Path, service: str) -> None:
        self._directory = directory
        self._service = service
        self._hits: dict[str, int] = {}

    def reach(self, point: str) -> None:
        """Act if `point` is armed and this is the hit that it waits for. FaultError: its action is `raise`."""
        armed = _armed(self._directory, self._service, point)
        try:
            action, _, hit = armed.read_text(encoding="ascii").partition(" ")
        except FileNotFoundError:
            self._hits.pop(point, None)
            return
        self._hits[point] = self._hits.get(point, 0) + 1
        if self._hits[point] < int(hit):
            return
        try:
            armed.rename(fired := armed.with_suffix(".fired"))
        except FileNotFoundError:
            return  # another process of the same service was first
        fired.touch()
        _act(action, point)


_faults: Faults | None = None


def reach(point: str) -> None:
    """The code has reached `point`: nothing happens unless a test has armed it. FaultError: its action is `raise`."""
    if _faults is not None:
        _faults.reach(point)


def enter(service: str) -> None:
    """This process is `service` from now on; its points can be armed where EACHPROMPT_FAULTS names a directory."""
    global _faults
    directory = os.environ.get(VARIABLE)
    _faults = Faults(Path(directory), service) if directory else None


def arm(directory: Path, service: str, point: str, action: Action, hit: int = 1) -> None:
    """Have `service` do `action` when it reaches `point` for the `hit`-th time from now. ValueError: no such thing."""
    if point not in POINTS:
        raise ValueError(f"fault point {point!r} is not one of {', '.join(POINTS)}")
    if action not in get_args(Action):
        raise ValueError(f"fault action {action!r} is not one of {', '.join(get_args(Action))}")
    if hit < 1:
        raise ValueError(f"fault point {point} is to act at hit {hit}, which is not at least 1")
    directory.mkdir(parents=True, exist_ok=True)
    armed = _armed(directory, service, point)
    partial = armed.with_suffix(".partial")
    partial.write_text(f"{action} {hit}", encoding="ascii")
    partial.rename(armed)


def disarm(directory: Path) -> None:
    """Take back every fault that has not fired."""
    for armed in directory.glob("*.armed"):
        armed.unlink(missing_ok=True)


def fired(directory: Path) -> Iterator[tuple[str, str, float]]:
    """(service, point, unix time) of the faults that fired since this was last asked; each is reported once."""
    for path in sorted(directory.glob("*.fired")):
        service, _, point = path.stem.partition(":")
        time_s = path.stat().st_mtime
        path.unlink()
        yield service, point, time_s


def _armed(directory: Path, service: str, point: str) -> Path:
    return directory / f"{service}:{point}.armed"


def _act(action: str, point: str) -> None:
    match action:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "raise":
            raise FaultError(f"fault point {point} was armed to raise")
        case _:
            raise ValueError(f"fault point {point} is armed with {action!r}; allowed: {', '.join(get_args(Action))}")
