"""How long the learner takes to be back after SIGKILL of one of its ranks, and where that time goes.

    python -m benchmarks.learner_recovery [--kills 5] [--broker embedded|kafka] [--dir DIR] [--json]

The real session, supervisor and ranks on the demo's model; batches are recorded ones, written twice a second, so that
there is always one to train on. A kill hits a rank at a random instant, ranks in turn. From SIGKILL to the next
StepCompleted on the log; what the ranks' own logs say of the successors' start is taken from the slower rank. Loading
is imports, configuration, model and checkpoint; what is beyond it is to be at most 10 s, else the exit code is 1.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import psutil

from deploy.cli.commands.demo import DEMO
from deploy.config.layout import process_name
from deploy.config.run import RunConfig, load, read, toml_text
from deploy.local.processes import service_units
from deploy.local.session import Session, quiet_clients
from learner.training.phases import read_phases
from schemas import BatchPlanned, PlannedSequence, StepCompleted, decode
from streams.log.clients import Log, LogSettings, Writer
from streams.log.reader import Reader
from streams.processes.child import running_pid
from streams.record import Output
from tests.learner.service_run import GROUP, completed

RANKS: Final = 2
SEQUENCES: Final = 32
LOADING: Final = ("process and imports", "configuration", "model", "checkpoint")
BOUND_S: Final = 10.0
EVERY_S: Final = 0.5
DEADLINE_S: Final = 120.0


@dataclass(frozen=True)
class Recovery:
    """Seconds after SIGKILL of `rank`: `step_s` to the next step on the log, `new_s` to the next that was not there
    before; `parts` of the successors' start."""

    rank: int
    step_s: float
    new_s: float
    parts: dict[str, float]

    @property
    def beyond_s(self) -> float:
        """Without loading."""
        return self.step_s - sum(self.parts.get(name, 0.0) for name in LOADING)


class Steps:
    """The steps on the log as they come."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._new = asyncio.Event()
        self.count = 0
        self.newest = 0

    async def follow(self) -> None:
        """Until cancelled."""
        async with Reader(self._log, {("steps", 0): 0}) as reader:
            while True:
                for record in await reader.poll(0.02):
                    event = decode(record.value)
                    if isinstance(event, StepCompleted):
                        self.count += 1
                        self.newest = max(self.newest, event.step)
                        self._new.set()

    async def until(self, count: int = 0, newest: int = 0) -> None:
        """Wait for so many records, and for so high a step. TimeoutError."""
        async with asyncio.timeout(DEADLINE_S):
            while self.count < count or self.newest < newest:
                self._new.clear()
                await self._new.wait()


def configure(directory: Path, broker: str) -> RunConfig:
    """The demo's configuration, written to the run directory."""
    tables: dict[str, Any] = read(DEMO)
    tables["run"] = {**tables["run"], "id": "recovery", "steps": 0, "ranks": RANKS}
    tables["broker"] = {"kind": broker, "ephemeral": broker == "embedded"}
    tables["learner"] = {**tables["learner"], "checkpoint": {"every": 10}}
    (directory / "run.toml").write_text(toml_text(tables, "A learner under fire."), encoding="utf-8")
    return load(None, directory=directory)


async def write_batches(log: Log) -> None:
    """One batch after the other, until cancelled."""
    half = tuple(range(SEQUENCES // 2)), tuple(range(SEQUENCES // 2, SEQUENCES))
    async with Writer(log) as writer:
        batch = 0
        while True:
            sequences = []
            for index in range(SEQUENCES):
                event = msgspec.structs.replace(completed(index, batch), routes=None)
                ref = await writer.write(Output("rollouts", event, key=GROUP))
                sequences.append(
                    PlannedSequence(
                        rollout_id=event.rollout_id,
                        rollout=ref,
                        advantage=1.0 if index % 2 else -1.0,
                        reward=float(index % 2),
                        prompt_tokens=3,
                        response_tokens=event.response_ids.shape[0],
                        oldest_version=batch,
                    )
                )
            plan = BatchPlanned(
                batch=batch,
                groups=(GROUP,),
                sequences=tuple(sequences),
                ranks=((half[0],), (half[1],)),
                token_budget=4096,
                time_s=time.time(),
            )
            await writer.write(Output("batches", plan))
            batch += 1
            await asyncio.sleep(EVERY_S)


async def strike(config: RunConfig, steps: Steps, rank: int, draw: random.Random) -> Recovery:
    """SIGKILL to `rank` some steps after a start, and what came of it."""
    await steps.until(count=steps.count + draw.randint(8, 14))
    await asyncio.sleep(draw.random())
    paths = [config.layout.pid_file(process_name("learner", each, RANKS)) for each in range(RANKS)]
    pids = [running_pid(path) for path in paths]
    victim = pids[rank]
    assert victim is not None, f"learner rank {rank} does not run"
    count, newest, at_s = steps.count, steps.newest, time.time()
    os.kill(victim, signal.SIGKILL)
    await steps.until(count=count + 1)
    step_s = time.time() - at_s
    await steps.until(newest=newest + 1)
    new_s = time.time() - at_s
    born_s = [psutil.Process(pid).create_time() for path in paths if (pid := running_pid(path)) is not None]
    return Recovery(rank, step_s, new_s, parts_of(config, at_s, max(born_s), step_s))


def parts_of(config: RunConfig, at_s: float, born_s: float, step_s: float) -> dict[str, float]:
    """Of the last start in each rank's log: the rank whose loading took longer."""
    starts = []
    for rank in range(RANKS):
        log = config.layout.log(process_name("learner", rank, RANKS))
        said = [found for line in log.read_text(errors="replace").splitlines() if (found := read_phases(line))]
        starts.append(said[-1])
    slower = max(starts, key=lambda phases: sum(phases.values()))
    started_s = sum(slower.values())
    parts = {"noticed, ended, started again": born_s - at_s}
    # The clock of the phases begins where the service does; before it are the interpreter and the command's imports.
    ready_s = at_s + step_s - born_s
    first_step_s = min(ready_s, max(0.0, ready_s - started_s))
    imports_s = slower.pop("imports")
    parts["process and imports"] = imports_s
    parts |= slower
    parts["interpreter, first batch and step"] = first_step_s
    return parts


async def campaign(config: RunConfig, kills: int, seed: int) -> list[Recovery]:
    """Ranks in turn; everything has ended on return."""
    draw = random.Random(seed)

    async with Session(config, note=lambda said: print(f"  {said[:200]}", file=sys.stderr)) as session:
        log = Log(LogSettings(session.bootstrap, config.run.id, config.run.partitions), "benchmark")
        steps = Steps(log)

        async def strikes() -> list[Recovery]:
            beside = [asyncio.create_task(work) for work in (write_batches(log), steps.follow())]
            try:
                return [await strike(config, steps, number % RANKS, draw) for number in range(kills)]
            finally:
                for task in beside:
                    task.cancel()

        return await session.serve(strikes(), services=service_units(config, "learner")) or []


def table(found: Sequence[Recovery]) -> list[str]:
    """Medians and worst cases, in seconds."""
    lines = [f"{'seconds after SIGKILL of a rank':<44}{'median':>8}{'worst':>8}"]
    rows: dict[str, list[float]] = {
        "to the next StepCompleted": [one.step_s for one in found],
        "to the next step that is new": [one.new_s for one in found],
        "beyond loading": [one.beyond_s for one in found],
    }
    for name in found[0].parts:
        loading = " (loading)" if name in LOADING else ""
        rows[f"  {name}{loading}"] = [one.parts.get(name, 0.0) for one in found]
    return lines + [f"{name:<44}{statistics.median(took):>8.2f}{max(took):>8.2f}" for name, took in rows.items()]


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=5, metavar="N", help="kills, ranks in turn (default 5)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="when they come (default 0)")
    parser.add_argument("--broker", choices=("embedded", "kafka"), default="embedded", help="default embedded")
    parser.add_argument("--dir", type=Path, metavar="DIR", help="run directory, kept (default: a temporary one)")
    parser.add_argument("--json", action="store_true", help="print one JSON object too")
    arguments = parser.parse_args()
    quiet_clients()
    with tempfile.TemporaryDirectory(prefix="eachprompt-recovery-") as scratch:
        directory = arguments.dir or Path(scratch)
        directory.mkdir(parents=True, exist_ok=True)
        found = asyncio.run(campaign(configure(directory, arguments.broker), arguments.kills, arguments.seed))
    load_1, _, _ = os.getloadavg()
    print(f"{len(found)} kills, load average {load_1:.1f} on {os.cpu_count()} cores")
    print("\n".join(table(found)))
    if arguments.json:
        print(json.dumps([{**asdict(one), "beyond_s": one.beyond_s} for one in found]))
    return 1 if statistics.median(one.beyond_s for one in found) > BOUND_S else 0


if __name__ == "__main__":
    sys.exit(main())
