"""How long the light services and the broker take to be back after SIGKILL.

    python -m benchmarks.recovery [--kills 8] [--broker-kills 5] [--only rewards,broker] [--json]

The run of `eachprompt up` on Apache Kafka with its real session and supervisor: dispatcher, rewards (2), groups (2) and
batches. The load program and the stepper of `tests/chaos` stand in for engine and model; a group of four rollouts takes
`--group-s` seconds, 32 at once. After each kill the run is left alone for `--gap` seconds. Afterwards the log is read:
topics carry the broker's own append times, so a record counts from when it was on the log. Recovery is the time from
SIGKILL to the first committed record of the victim's successor, and for the broker to the first record of the slowest
service; exit code 1 where something never came back.
"""

import argparse
import asyncio
import dataclasses
import json
import os
import re
import signal
import statistics
import sys
import tempfile
import time
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from deploy.cli.commands.demo import DEMO
from deploy.config.run import RunConfig, load, read, toml_text
from deploy.local.processes import service_units
from deploy.local.session import Session, quiet_clients, topic_specs
from deploy.local.supervisor import ProcessSpec, Unit
from schemas.services import SERVICES
from streams.broker import open_broker
from streams.broker.endpoint import broker_pid_file
from streams.log.admin import create_topics
from streams.log.history import read_topic
from streams.processes.child import running_pid

ROOT: Final = Path(__file__).parents[1]
STAND_INS: Final = {"producer": "tests.chaos.load", "learner": "tests.chaos.stepper"}
OUTPUT: Final = {name: service.output for name, service in SERVICES.items()}
VICTIMS: Final = ("dispatcher", "rewards-0", "rewards-1", "groups-0", "groups-1", "batches", "broker")
REPLICAS: Final = {"rewards": 2, "groups": 2}
TABLES: Final[dict[str, dict[str, Any]]] = {
    "run": {"id": "recovery", "steps": 0, "groups_per_batch": 8, "group_size": 4, "max_staleness": 3, "ranks": 1},
    "replicas": REPLICAS,
    "broker": {"kind": "kafka"},
    "blobs": {"inline_max_bytes": 16},
    "dispatcher": {"evaluate_every": 0, "group_timeout_s": 60.0},
}
SUCCESSOR_S: Final = 0.05
"""What a dead process had sent is on the log by then; a new Python process has not even loaded."""

BROKER_MARKS: Final = {
    "JVM logs": "",
    "controller": "Awaiting socket connections",
    "log recovered": "Loaded \\d+ logs",
    "unfenced": "has been unfenced",
    "started": "Kafka Server started",
}


@dataclasses.dataclass(frozen=True)
class Kill:
    """SIGKILL to `victim` at `at_s` (unix seconds); its successor's process was there at `successor_s`."""

    victim: str
    at_s: float
    successor_s: float


@dataclasses.dataclass(frozen=True)
class Recovery:
    """Seconds from the kill to the successor's process and to the first record; `parts` by what they are."""

    victim: str
    process_s: float
    progress_s: float | None
    parts: dict[str, float]


def configure(directory: Path) -> RunConfig:
    """The demo's configuration with a busy pipeline, written to the run directory."""
    tables = read(DEMO)
    # The first evaluation would keep the engine's stand-in busy with what no stage after `groups` hears of.
    tables.pop("held_back")
    for section, values in TABLES.items():
        tables[section] = {**tables.get(section, {}), **values}
    (directory / "checkpoints").mkdir(exist_ok=True)
    (directory / "run.toml").write_text(toml_text(tables, "A run under fire."), encoding="utf-8")
    return load(None, directory=directory)


def make_topics(config: RunConfig) -> None:
    """The run's topics with append times, before the session would make them with the clients' times."""
    specs = [
        dataclasses.replace(spec, config={**spec.config, "message.timestamp.type": "LogAppendTime"})
        for spec in topic_specs(config)
    ]
    with open_broker(config.broker.build(), config.directory) as broker:
        create_topics(broker.bootstrap, specs)


def units_of(config: RunConfig, bootstrap: str, group_s: float) -> list[Unit]:
    """Every service as the supervisor has it, with stand-ins for the producer and the learner."""
    return [
        Unit(unit.service, tuple(_stand_in(config, service, spec, bootstrap, group_s) for spec in unit.processes))
        for service in SERVICES
        for unit in service_units(config, service)
    ]


def _stand_in(config: RunConfig, service: str, spec: ProcessSpec, bootstrap: str, group_s: float) -> ProcessSpec:
    if service not in STAND_INS:
        return spec
    pace = [str(group_s)] if service == "producer" else []
    argv = (sys.executable, "-m", STAND_INS[service], str(config.directory), "0", "1", bootstrap, *pace)
    return dataclasses.replace(spec, argv=argv, env={**spec.env, "PYTHONPATH": str(ROOT)})


async def kill(config: RunConfig, victim: str, deadline_s: float) -> Kill:
    """SIGKILL, and wait for the process that takes its place."""
    path = broker_pid_file(config.directory) if victim == "broker" else config.layout.pid_file(victim)
    pid = running_pid(path)
    if pid is None:
        raise SystemExit(f"{victim} does not run")
    at_s = time.time()
    os.kill(pid, signal.SIGKILL)
    while running_pid(path) in (None, pid):
        if time.time() - at_s > deadline_s:
            raise SystemExit(f"{victim} was not started again within {deadline_s:g} s")
        await asyncio.sleep(0.02)
    return Kill(victim, at_s, time.time())


async def campaign(
    config: RunConfig, plan: Sequence[str], gap_s: float, warm_s: float, group_s: float
) -> tuple[list[Kill], dict[str, list[float]]]:
    """One kill after the other, and when records came onto the log since the first; everything has ended on return."""
    kills: list[Kill] = []

    async def strike() -> None:
        await asyncio.sleep(warm_s)
        for victim in plan:
            kills.append(await kill(config, victim, 30.0))
            await asyncio.sleep(max(0.0, kills[-1].at_s + (3 if victim == "broker" else 1) * gap_s - time.time()))

    async with Session(config, note=lambda said: print(f"  {said[:160]}", file=sys.stderr)) as session:
        await session.serve(strike(), services=units_of(config, session.bootstrap, group_s))
        return kills, await asyncio.to_thread(append_times, session.bootstrap, config.run.id, kills[0].at_s)


def append_times(bootstrap: str, run: str, since_s: float) -> dict[str, list[float]]:
    """Process name → when its committed records came onto the log, ascending."""
    times: dict[str, list[float]] = {}
    for service, topic in OUTPUT.items():
        for record in read_topic(bootstrap, run, topic, since_s=since_s):
            replicas = REPLICAS.get(service, 1)
            name = service if replicas == 1 else f"{service}-{record.partition % replicas}"
            times.setdefault(name, []).append(record.time_s)
    return {name: sorted(values) for name, values in times.items()}


def recovery(config: RunConfig, hit: Kill, until_s: float, times: dict[str, list[float]]) -> Recovery:
    """What followed a kill; `until_s` is when the next one came."""
    since_s = hit.successor_s + SUCCESSOR_S

    def first(name: str) -> float | None:
        values = times.get(name, [])
        index = bisect_right(values, since_s)
        return values[index] - hit.at_s if index < len(values) and values[index] < until_s else None

    if hit.victim != "broker":
        log = config.layout.log(hit.victim)
        parts = {"serves": _logged_at(log, "serves run", hit.successor_s, until_s) - hit.at_s}
        return Recovery(hit.victim, hit.successor_s - hit.at_s, first(hit.victim), parts)
    log = config.layout.log("broker")
    parts = {mark: _logged_at(log, text, hit.successor_s, until_s) - hit.at_s for mark, text in BROKER_MARKS.items()}
    firsts = {name: first(name) for name in times}
    parts |= {name: float("nan") if at_s is None else at_s for name, at_s in firsts.items()}
    known = [at_s for at_s in firsts.values() if at_s is not None]
    return Recovery("broker", hit.successor_s - hit.at_s, max(known) if len(known) == len(firsts) else None, parts)


def _logged_at(log: Path, text: str, since_s: float, until_s: float) -> float:
    """When a line of `log` first matched in that time, unix seconds; NaN where none did."""
    pattern = re.compile(text)
    for line in log.read_text(errors="replace").splitlines():
        stamp = line[:23].replace("T", " ").replace(",", ".")
        try:
            at_s = datetime.fromisoformat(stamp).timestamp()
        except ValueError:
            continue
        if since_s <= at_s < until_s and pattern.search(line):
            return at_s
    return float("nan")


def table(found: Iterable[Recovery]) -> list[str]:
    """One line a victim, then each kill of the broker in parts."""
    by_victim: dict[str, list[Recovery]] = {}
    for one in found:
        by_victim.setdefault(one.victim.partition("-")[0], []).append(one)
    lines = [f"{'killed':<12}{'n':>4}{'median':>9}{'worst':>8}   of it until its process began, until it serves"]
    for victim, hits in by_victim.items():
        took = [hit.progress_s for hit in hits if hit.progress_s is not None]
        lost = len(hits) - len(took)
        parts = [statistics.median(hit.process_s for hit in hits)]
        parts += [statistics.median(hit.parts["serves"] for hit in hits)] if victim != "broker" else []
        lines.append(
            f"{victim:<12}{len(hits):>4}{statistics.median(took) if took else float('nan'):>9.2f}"
            f"{max(took, default=float('nan')):>8.2f}   {', '.join(f'{part:.2f}' for part in parts)}"
            + (f"   {lost} without progress" if lost else "")
        )
    for number, hit in enumerate(by_victim.get("broker", []), 1):
        parts_text = ", ".join(f"{name} {at_s:.1f}" for name, at_s in hit.parts.items())
        lines.append(f"broker {number}: process {hit.process_s:.1f}, {parts_text}")
    return lines


def planned(arguments: argparse.Namespace) -> list[str]:
    """The victims in turn: services mixed, the broker at the end, one kill after the other."""
    only = arguments.only.split(",") if arguments.only else ["dispatcher", "rewards", "groups", "batches", "broker"]
    allowed = {victim.partition("-")[0] for victim in VICTIMS}
    if wrong := [name for name in only if name not in allowed]:
        raise SystemExit(f"--only is {wrong[0]!r}; allowed: {', '.join(sorted(allowed))}")
    plan = [
        name if name not in REPLICAS else f"{name}-{number % REPLICAS[name]}"
        for number in range(arguments.kills)
        for name in only
        if name != "broker"
    ]
    return plan + ["broker"] * (arguments.broker_kills if "broker" in only else 0)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=8, metavar="N", help="kills of each light service (default 8)")
    parser.add_argument("--broker-kills", type=int, default=5, metavar="N", help="kills of Kafka (default 5)")
    parser.add_argument("--gap", type=float, default=5.0, metavar="S", help="seconds from kill to kill; broker 3 times")
    parser.add_argument("--warm", type=float, default=12.0, metavar="S", help="seconds before the first kill")
    parser.add_argument(
        "--group-s", type=float, default=0.5, metavar="S", help="seconds that a group takes (default 0.5)"
    )
    parser.add_argument("--only", metavar="A,B", help="dispatcher, rewards, groups, batches, broker (default: all)")
    parser.add_argument("--dir", type=Path, metavar="DIR", help="run directory, kept (default: a temporary one)")
    parser.add_argument("--json", action="store_true", help="print one JSON object too")
    arguments = parser.parse_args()
    quiet_clients()
    plan = planned(arguments)
    with tempfile.TemporaryDirectory(prefix="eachprompt-recovery-") as scratch:
        directory = arguments.dir or Path(scratch)
        directory.mkdir(parents=True, exist_ok=True)
        config = configure(directory)
        make_topics(config)
        kills, times = asyncio.run(campaign(config, plan, arguments.gap, arguments.warm, arguments.group_s))
        ends = [*(hit.at_s for hit in kills[1:]), float("inf")]
        found = [recovery(config, hit, until_s, times) for hit, until_s in zip(kills, ends, strict=True)]
    rollouts = len(times.get("producer", []))
    span_s = max(values[-1] for values in times.values()) - kills[0].at_s
    print(f"{len(kills)} kills, {rollouts} rollouts meanwhile, {rollouts / span_s:.0f} a second")
    print("\n".join(table(found)))
    if arguments.json:
        print(json.dumps([dataclasses.asdict(one) for one in found]))
    return 1 if any(one.progress_s is None for one in found) else 0


if __name__ == "__main__":
    sys.exit(main())
