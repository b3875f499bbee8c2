"""The pipeline of the real services on Apache Kafka, each a process, transactions on.

From outside each process: its CPU time, and the bytes that passed through its `read` and `write` calls (sockets'
included), which is how often a body was really read and written.
"""

import os
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import psutil

from benchmarks.delivery.load import GO
from benchmarks.delivery.loops import Loop
from benchmarks.delivery.shape import Arrival, Shape
from benchmarks.delivery.stage import RUN
from schemas import TOPICS
from streams.broker import BrokerSettings
from streams.broker.kafka import KafkaBroker
from streams.broker.ports import HOST
from streams.log.admin import Admin, TopicSpec
from streams.processes.child import Child

STAGES: Final = ("groups", "batches", "rewards", "feed", "load")
CONTROL: Final = "idle"


@dataclass(frozen=True)
class Used:
    """What a process used: CPU seconds, bytes of its read and write calls."""

    cpu_s: float = 0.0
    read_bytes: int = 0
    written_bytes: int = 0

    def __sub__(self, other: "Used") -> "Used":
        return Used(
            self.cpu_s - other.cpu_s,
            self.read_bytes - other.read_bytes,
            self.written_bytes - other.written_bytes,
        )


@dataclass(frozen=True)
class Measured:
    """What arrived, what each process used for it, and the event loops where bodies were in flight."""

    arrival: Arrival
    used: dict[str, Used]
    loops: dict[str, Loop]

    @property
    def seconds(self) -> float:
        """From the first written to the last in the learner's hands."""
        return self.arrival.last_received_s - self.arrival.first_written_s

    @property
    def rate(self) -> float:
        """Rollouts a second."""
        return self.arrival.rollouts / self.seconds

    @property
    def cpu_ms(self) -> dict[str, float]:
        """CPU ms a rollout, by process."""
        return {name: 1e3 * used.cpu_s / self.arrival.rollouts for name, used in self.used.items()}


def run(directory: Path, shape: Shape, partitions: int, deadline_s: float) -> Measured:
    """Start broker and services, wait until everything has arrived, stop them."""
    with KafkaBroker(BrokerSettings(kind="kafka"), directory) as broker:
        with Admin(broker.bootstrap) as admin:
            admin.create_topics([TopicSpec(t.on(RUN), partitions if t.sharded else 1) for t in TOPICS.values()])
        (directory / "shape.json").write_bytes(msgspec.json.encode(shape))
        names = [*STAGES, *([CONTROL] if shape.tokens else [])]
        children = {name: _start(name, directory, broker.bootstrap, partitions) for name in names}
        try:
            _wait_ready(directory, children)
            assert broker.pid is not None
            processes = {name: psutil.Process(child.pid) for name, child in children.items() if name != CONTROL}
            processes["broker"] = psutil.Process(broker.pid)
            before = {name: _used(process) for name, process in processes.items()}
            (directory / GO).touch()
            used = _until_arrived(directory, children, processes, deadline_s)
        finally:
            for child in children.values():
                child.stop(10)
    arrival = msgspec.json.decode((directory / "arrival.json").read_bytes(), type=Arrival)
    loops = {
        path.stem: msgspec.json.decode(path.read_bytes(), type=Loop) for path in (directory / "loops").glob("*.json")
    }
    return Measured(arrival, {name: used[name] - before[name] for name in sorted(used)}, loops)


def _until_arrived(
    directory: Path, children: dict[str, Child], processes: dict[str, psutil.Process], deadline_s: float
) -> dict[str, Used]:
    """What each process had used when the feed had everything, to a quarter of a second."""
    used: dict[str, Used] = {}
    deadline = time.monotonic() + deadline_s
    while children["feed"].wait(0.25) is None:
        used = {name: _used(process, used.get(name)) for name, process in processes.items()}
        dead = [name for name, child in children.items() if name != "feed" and not child.alive()]
        if dead or time.monotonic() > deadline:
            raise SystemExit(f"{dead or 'the pipeline'} ended or passed {deadline_s:g} s; see {directory}/logs")
    return used


def _start(name: str, directory: Path, bootstrap: str, partitions: int) -> Child:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])}
    return Child.start(
        [sys.executable, "-m", "benchmarks.delivery.stage", name, str(directory), bootstrap, str(partitions)],
        log=directory / "logs" / f"{name}.log",
        name=name,
        env=environment,
    )


def _wait_ready(directory: Path, children: dict[str, Child]) -> None:
    """Until every service's `/ready` answers 200."""
    deadline = time.monotonic() + 60
    pending = set(children)
    while pending:
        pending -= {path.stem for path in (directory / "health").glob("*.json") if _is_ready(path)}
        dead = [name for name in pending if children[name].wait(0.05) is not None]
        if dead or time.monotonic() > deadline:
            raise SystemExit(f"{dead or sorted(pending)} did not start; see {directory}/logs")


def _is_ready(health: Path) -> bool:
    port = msgspec.json.decode(health.read_bytes())["port"]
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _used(process: psutil.Process, last: Used | None = None) -> Used:
    try:
        times, transferred = process.cpu_times(), process.io_counters()
    except psutil.NoSuchProcess:
        return last or Used()
    return Used(float(times.user + times.system), transferred.read_chars, transferred.write_chars)
