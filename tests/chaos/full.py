"""The demo under fire: real engine, real learner on two ranks, and kills of everything while it trains.

Slow to restart, so the blows are few; what they aim at is what the light campaign stands in for: engine, checkpoint,
publication. The demo itself concludes: it must do all its steps and its audit must be clean.
"""

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from deploy.layout import RunDirectory
from streams import faults
from streams.broker import find_endpoint
from streams.child import Child, running_pid
from tests.chaos.progress import Progress, Recovery

POINTS: Final = (
    ("learner", "learner.training"),
    ("learner", "checkpoint.shards"),
    ("learner", "learner.trained"),
    ("learner", "checkpoint.manifest"),
    ("learner", "publisher.uploaded"),
    ("learner", "learner.announced"),
    ("learner", "checkpoint.renamed"),
    ("learner", "publisher.published"),
    ("learner", "transaction.sent"),
    ("learner", "blobs.written"),
    ("producer", "rollouts.written"),
    ("producer", "worker.committing"),
)
"""In this order, each once: a restart of learner or engine takes a while, so one seed visits all of them."""

_LIGHT: Final = ("dispatcher", "rewards", "groups", "batches")
_READY_S: Final = 180.0


@dataclass(frozen=True)
class FullVerdict:
    """`summary` is the demo's own, None where it did not conclude."""

    blows: Counter[str]
    recoveries: list[Recovery]
    summary: dict[str, Any] | None
    repeated_steps: int
    findings: list[str]


async def run_full(directory: Path, *, seed: int, steps: int, deadline_s: float, light_gap_s: float) -> FullVerdict:
    """One demo of `steps` with every heavy point once, one after the other, and a light service killed now and then."""
    armed = directory.with_name(f"{directory.name}-faults")
    armed.mkdir(parents=True, exist_ok=True)
    out = directory.with_name(f"{directory.name}.out")
    argv = (
        *(sys.executable, "-P", "-m", "deploy.command", "demo", "--steps", str(steps), "--seed", str(seed)),
        *("--dir", str(directory), "--broker", "kafka", "--json", "--deadline", str(deadline_s)),
        *("--set", "supervisor.quick_failures=1000", "--set", "supervisor.backoff_max_s=1.0"),
        *("--set", "learner.checkpoint_every=2"),
    )
    demo = Child.start(argv, log=out, env={**os.environ, faults.VARIABLE: str(armed)}, name="demo")
    blows: Counter[str] = Counter()
    recoveries: list[Recovery] = []
    progress: Progress | None = None
    following: asyncio.Task[None] | None = None
    try:
        end_s = time.monotonic() + _READY_S
        while (endpoint := find_endpoint(directory)) is None and time.monotonic() < end_s and demo.alive():
            await asyncio.sleep(0.2)
        assert endpoint is not None, f"the demo's broker did not start; see {out}"
        progress = Progress(endpoint.bootstrap, "demo", 4, {}, recoveries)
        following = asyncio.create_task(progress.follow())
        await progress.until("for the first step", lambda: len(progress.steps) >= 1 or not demo.alive(), _READY_S)
        await _blows(demo, directory, armed, progress, blows, random.Random(seed), light_gap_s)
        faults.disarm(armed)
        code = await asyncio.wait_for(demo.ended(), deadline_s)
    finally:
        if following is not None:
            following.cancel()
        await asyncio.to_thread(demo.stop, 30.0)
    findings = [] if code == 0 else [f"the demo ended with {code}; see {out}"]
    summary = _summary(out)
    if summary is None or summary["steps"] != steps:
        findings.append(f"the demo did {summary and summary['steps']} of {steps} steps")
    return FullVerdict(blows, recoveries, summary, progress.repeated_steps, findings + progress.contradictions)


async def _blows(
    demo: Child,
    directory: Path,
    armed: Path,
    progress: Progress,
    blows: Counter[str],
    draw: random.Random,
    light_gap_s: float,
) -> None:
    """Each heavy point in turn, the next one when the service has recovered; light kills in between."""
    next_light_s = time.monotonic() + light_gap_s
    for service, point in POINTS:
        faults.arm(armed, service, point, "kill", draw.choice((1, 2)))
        struck = False
        while demo.alive() and not (struck and not any(who.startswith(service) for who in progress.unrecovered())):
            for _, what, at_s in faults.fired(armed):
                blows[f"point {what} in {service}"] += 1
                progress.hit(f"point {what} in {service}", service, at_s)
                struck = True
            if time.monotonic() > next_light_s:
                next_light_s = time.monotonic() + light_gap_s
                _kill(directory, draw.choice(_LIGHT), progress, blows)
            await asyncio.sleep(0.05)


def _kill(directory: Path, name: str, progress: Progress, blows: Counter[str]) -> None:
    pid, at_s = running_pid(RunDirectory(directory).pid_file(name)), time.time()
    if pid is not None:
        os.kill(pid, signal.SIGKILL)
        blows[f"kill {name}"] += 1
        progress.hit(f"kill {name}", name, at_s)


def _summary(out: Path) -> dict[str, Any] | None:
    """The last line of the demo's output that is a JSON object."""
    for line in reversed(out.read_text(errors="replace").splitlines()):
        if line.startswith("{"):
            found: dict[str, Any] = json.loads(line)
            return found
    return None
