"""A second attempt, forced on real brokers: a producer that was paused in a group continues after its successor.

The producer is the chaos suite's: the real stage, resumption and events, and no engine. It stops itself at a fault
point right after a rollout was written and before anything is committed, its successor completes the group, and then
it continues where it stood. Every rollout that it writes then is on the log already.
"""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from analysis.history.read import audit_of
from analysis.history.run_log import RunLog
from deploy.cli.commands.demo import DEMO
from deploy.config.run import read, toml_text
from schemas import GroupDropped, GroupReady, GroupRequested, RolloutCompleted, RolloutDisposed
from streams import faults
from streams.log.clients import Log, Writer
from streams.record import Output
from tests.builders import group_requested
from tests.consumers.test_services import PARTITIONS, Everything, log, serving

__all__ = ["log"]

ROOT = Path(__file__).parents[2]
SAMPLES, WRITTEN_FIRST = 4, 2


async def test_what_a_paused_producer_writes_after_its_successor_ends_as_duplicate_once(
    log: Log, model: Path, tmp_path: Path
) -> None:
    seen = Everything(log)
    armed = configure(log, tmp_path)
    async with Writer(log) as writer, serving(log, model, tmp_path / "services"):
        with producer(log, tmp_path) as paused:
            await writer.write(Output("prompts", request("p.0"), key="p.0"))
            await until_stopped(armed)
            with producer(log, tmp_path):
                await seen.read_until("the group's end", lambda: ends_of_group(seen) == 1)
                assert len(seen.of(RolloutCompleted)) == SAMPLES
                paused.send_signal(signal.SIGCONT)
                late = SAMPLES - WRITTEN_FIRST
                await seen.read_until("the late rollouts' ends", lambda: len(seen.of(RolloutDisposed)) == late)
    records = [record.ref for _, record in seen.records["rollouts"]]
    names = Counter(event.rollout_id for event in seen.of(RolloutCompleted))
    assert names == {"p.0.0": 1, "p.0.1": 1, "p.0.2": 2, "p.0.3": 2}
    disposed = {event.rollout: event.disposition for event in seen.of(RolloutDisposed)}
    assert list(disposed.values()) == ["duplicate"] * late
    assert disposed.keys() <= set(records[SAMPLES:])
    assert ends_of_group(seen) == 1
    audit = await asyncio.to_thread(audit_of, RunLog(log.settings.bootstrap, log.settings.run))
    assert audit.clean
    assert (audit.produced, audit.dispositions["duplicate"]) == (SAMPLES + late, late)


def ends_of_group(seen: Everything) -> int:
    return len(seen.of(GroupReady)) + len(seen.of(GroupDropped))


def configure(log: Log, directory: Path) -> Path:
    """The run's configuration, and the fault that pauses the first producer; its file."""
    tables = read(DEMO)
    tables["run"] = {**tables["run"], "id": log.settings.run, "partitions": PARTITIONS}
    tables["broker"] = {"kind": "external", "bootstrap_servers": log.settings.bootstrap}
    (directory / "run.toml").write_text(toml_text(tables, "A producer that is paused."), encoding="utf-8")
    faults.arm(directory / "faults", "producer", "rollouts.written", "stop", hit=WRITTEN_FIRST)
    return directory / "faults"


@contextmanager
def producer(log: Log, directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The stand-in of the chaos suite, killed in the end."""
    argv = [sys.executable, "-m", "tests.chaos.load", str(directory), "0", "1", log.settings.bootstrap]
    env = {**os.environ, faults.VARIABLE: str(directory / "faults"), "PYTHONPATH": str(ROOT)}
    with (directory / "producer.log").open("ab") as out:
        process = subprocess.Popen(argv, env=env, cwd=ROOT, stdout=out, stderr=out)
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)


async def until_stopped(armed: Path) -> None:
    """TimeoutError: the producer never came to the fault point."""
    async with asyncio.timeout(60):
        while not list(faults.fired(armed)):
            await asyncio.sleep(0.05)


def request(group_id: str) -> GroupRequested:
    now_s = time.time()
    return group_requested(
        group_id, samples=SAMPLES, reference={"answer": "4", "after": "="}, time_s=now_s, deadline_s=now_s + 300
    )
