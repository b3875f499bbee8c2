"""The pipeline of the real services on Apache Kafka, each a process, transactions on."""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import psutil

from benchmarks.delivery.shape import Arrival, Shape
from benchmarks.delivery.stage import RUN
from schemas import TOPICS
from streams.admin import Admin, TopicSpec
from streams.broker import BrokerSettings
from streams.broker.kafka import KafkaBroker
from streams.child import Child

STAGES: Final = ("groups", "batches", "rewards", "feed", "load")


@dataclass(frozen=True)
class Measured:
    """Rollouts a second from the first written to the last in the learner's hands, CPU ms a rollout by process."""

    arrival: Arrival
    cpu_ms: dict[str, float]

    @property
    def rate(self) -> float:
        return self.arrival.rollouts / (self.arrival.last_received_s - self.arrival.first_written_s)


def run(directory: Path, shape: Shape, partitions: int, deadline_s: float) -> Measured:
    """Start broker and services, wait until everything has arrived, stop them."""
    broker = KafkaBroker(BrokerSettings(kind="kafka"), directory)
    with broker:
        with Admin(broker.bootstrap) as admin:
            admin.create_topics([TopicSpec(t.on(RUN), partitions if t.sharded else 1) for t in TOPICS.values()])
        (directory / "shape.json").write_bytes(msgspec.json.encode(shape))
        children = {name: _start(name, directory, broker.bootstrap, partitions) for name in STAGES[:-1]}
        _wait_ready(directory, children)
        assert broker.pid is not None
        processes = {name: psutil.Process(child.pid) for name, child in children.items()}
        processes["broker"] = psutil.Process(broker.pid)
        before = {name: _cpu_s(process) for name, process in processes.items()}
        children["load"] = _start("load", directory, broker.bootstrap, partitions)
        processes["load"] = psutil.Process(children["load"].pid)
        cpu: dict[str, float] = {}
        try:
            deadline = time.monotonic() + deadline_s
            while children["feed"].wait(0.25) is None:
                cpu = {name: _cpu_s(process) for name, process in processes.items() if process.is_running()}
                dead = [name for name, child in children.items() if name != "feed" and not child.alive()]
                if dead or time.monotonic() > deadline:
                    raise SystemExit(f"{dead or 'the pipeline'} ended or passed {deadline_s:g} s; see {directory}/logs")
        finally:
            for child in children.values():
                child.stop(10)
        arrival = msgspec.json.decode((directory / "arrival.json").read_bytes(), type=Arrival)
        return Measured(
            arrival, {name: 1e3 * (cpu[name] - before.get(name, 0.0)) / arrival.rollouts for name in sorted(cpu)}
        )


def _start(name: str, directory: Path, bootstrap: str, partitions: int) -> Child:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])}
    return Child.start(
        [sys.executable, "-m", "benchmarks.delivery.stage", name, str(directory), bootstrap, str(partitions)],
        log=directory / "logs" / f"{name}.log",
        name=name,
        env=environment,
    )


def _wait_ready(directory: Path, children: dict[str, Child]) -> None:
    """Until every service's health file is there: it is written once the service serves."""
    deadline = time.monotonic() + 60
    pending = set(children)
    while pending:
        pending -= {path.stem.partition("-")[0] for path in (directory / "health").glob("*.json")}
        dead = [name for name in pending if children[name].wait(0.05) is not None]
        if dead or time.monotonic() > deadline:
            raise SystemExit(f"{dead or sorted(pending)} did not start; see {directory}/logs")


def _cpu_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)
