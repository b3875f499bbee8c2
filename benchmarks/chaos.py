"""Kills everything, many times, and proves from the log that nothing was lost and nothing trained twice.

    make chaos ARGS='--kills 300 --seed 1'      # recorded load and a digest for engine and model: hundreds in minutes
    make chaos ARGS='--full --steps 30'         # the demo itself: real engine, real learner, each heavy kill point once

Real Apache Kafka and the real services. Prints kill point against recovery time (from the kill to the next record of
whoever was hit), and what it found; exit code 1 if anything.
"""

import argparse
import asyncio
import json
import logging
import shutil
import sys
import tempfile
from pathlib import Path

from streams.broker import BrokerSettings
from streams.broker.jars import kafka_obstacle
from tests.chaos.campaign import Campaign
from tests.chaos.full import run_full
from tests.chaos.schedule import schedule
from tests.chaos.verdict import table


def main() -> int:
    """The command."""
    arguments = _parser().parse_args()
    if (obstacle := kafka_obstacle(BrokerSettings(kind="kafka"))) is not None:
        print(f"make chaos: Apache Kafka cannot run: {obstacle}", file=sys.stderr)
        return 2
    for client in ("aiokafka", "kafka"):
        logging.getLogger(client).setLevel(logging.CRITICAL)
    directory = arguments.dir or Path(tempfile.mkdtemp(prefix="eachprompt-chaos-"))
    directory.mkdir(parents=True, exist_ok=True)
    findings = _full(arguments, directory) if arguments.full else _light(arguments, directory)
    print("\n".join(["findings:", *findings[:50]]) if findings else "findings: none")
    if findings or arguments.dir is not None:
        print(f"kept: {directory}")
    else:
        shutil.rmtree(directory, ignore_errors=True)
    return 1 if findings else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="make chaos ARGS=", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=_positive, default=300, metavar="N", help="blows in all (default 300)")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="decides them all (default 1)")
    parser.add_argument("--gap", type=float, default=0.6, metavar="S", help="mean seconds between (default 0.6)")
    parser.add_argument("--broker-every", type=_positive, default=40, metavar="N", help="N-th hits Kafka (default 40)")
    parser.add_argument("--full", action="store_true", help="the demo with real engine and learner")
    parser.add_argument("--steps", type=_positive, default=30, metavar="N", help="steps of --full (default 30)")
    parser.add_argument("--deadline", type=float, default=900.0, metavar="S", help="seconds for --full (default 900)")
    parser.add_argument("--dir", type=Path, metavar="DIR", help="directory, kept (default: a temporary one)")
    parser.add_argument("--json", action="store_true", help="print one JSON object too")
    return parser


def _light(arguments: argparse.Namespace, directory: Path) -> list[str]:
    blows = schedule(arguments.seed, arguments.kills, arguments.gap, arguments.broker_every)
    verdict = asyncio.run(Campaign(directory).run(blows))
    print(verdict.table(), flush=True)
    print(f"\n{verdict.kills} SIGKILLs among {verdict.blows.total()} blows in {verdict.wall_s:.0f} s")
    print(f"points not reached in time: {verdict.missed.total()}")
    print(f"ended by themselves: {json.dumps(dict(verdict.ends), indent=1)}")
    print(f"audit: {verdict.audit.produced} produced, {verdict.audit.dispositions}, {verdict.audit.in_flight_waiting}")
    if arguments.json:
        print(json.dumps(verdict.summary()))
    return verdict.findings


def _full(arguments: argparse.Namespace, directory: Path) -> list[str]:
    where = directory / "run"
    verdict = asyncio.run(
        run_full(where, seed=arguments.seed, steps=arguments.steps, deadline_s=arguments.deadline, light_gap_s=4.0)
    )
    print(table(verdict.blows, verdict.recoveries), flush=True)
    print(f"\n{verdict.blows.total()} SIGKILLs, {verdict.repeated_steps} steps told again")
    print(f"summary: {json.dumps(verdict.summary)}")
    return verdict.findings


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
