"""Kills everything, many times, and proves from the log that nothing was lost and nothing trained twice.

    make chaos ARGS='--kills 300 --seed 1'      # recorded load and a digest for engine and model: hundreds in minutes
    make chaos ARGS='--full --kills 80'         # the real engine and learner too, under every kind of blow
    make chaos ARGS=--tests                     # the tests that are too slow for `make test`: pytest -m chaos

Real Apache Kafka and the real services. Prints kill point against recovery time (from the kill to the next record of
whoever was hit), and what it found; exit code 1 if anything. A long schedule can be run in parts, with --skip.
"""

import argparse
import asyncio
import json
import logging
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from streams.broker import BrokerSettings
from streams.broker.jars import kafka_obstacle
from tests.chaos.campaign import Campaign
from tests.chaos.schedule import Blow, full_schedule, schedule
from tests.chaos.shape import FULL, LIGHT
from tests.chaos.verdict import Verdict

_FULL_KILLS = 80


def main() -> int:
    """The command."""
    arguments = _parser().parse_args()
    if (obstacle := kafka_obstacle(BrokerSettings(kind="kafka"))) is not None:
        print(f"make chaos: Apache Kafka cannot run: {obstacle}", file=sys.stderr)
        return 2
    if arguments.tests:
        return subprocess.run([sys.executable, "-m", "pytest", "-m", "chaos"], check=False).returncode
    for client in ("aiokafka", "kafka"):
        logging.getLogger(client).setLevel(logging.CRITICAL)
    directory = arguments.dir or Path(tempfile.mkdtemp(prefix="eachprompt-chaos-"))
    directory.mkdir(parents=True, exist_ok=True)
    campaign = Campaign(directory, FULL if arguments.full else LIGHT)
    verdict = asyncio.run(campaign.run(_blows(arguments)))
    _print(verdict, arguments.json)
    if verdict.findings or arguments.dir is not None:
        print(f"kept: {directory}")
    else:
        shutil.rmtree(directory, ignore_errors=True)
    return 1 if verdict.findings else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="make chaos ARGS=", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--kills", type=_positive, metavar="N", help=f"blows in all (default 300, with --full {_FULL_KILLS})"
    )
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="decides them all (default 1)")
    parser.add_argument("--skip", type=int, default=0, metavar="N", help="leave out the first N blows of the schedule")
    parser.add_argument("--gap", type=float, default=0.6, metavar="S", help="mean seconds between (default 0.6)")
    parser.add_argument("--broker-every", type=_positive, default=40, metavar="N", help="N-th hits Kafka (default 40)")
    parser.add_argument("--full", action="store_true", help="the real engine and the real learner on two ranks")
    parser.add_argument("--tests", action="store_true", help="run the tests marked chaos, and nothing else")
    parser.add_argument("--dir", type=Path, metavar="DIR", help="directory, kept (default: a temporary one)")
    parser.add_argument("--json", action="store_true", help="print one JSON object too")
    return parser


def _blows(arguments: argparse.Namespace) -> Iterable[Blow]:
    skip = arguments.skip
    if arguments.full:
        return islice(full_schedule(arguments.seed), skip, skip + (arguments.kills or _FULL_KILLS))
    count = skip + (arguments.kills or 300)
    return islice(schedule(arguments.seed, count, arguments.gap, arguments.broker_every), skip, None)


def _print(verdict: Verdict, as_json: bool) -> None:
    print(verdict.table(), flush=True)
    print(f"\n{verdict.kills} SIGKILLs among {verdict.blows.total()} blows in {verdict.wall_s:.0f} s")
    print(f"points not reached in time: {verdict.missed.total()}")
    print(f"steps: {verdict.steps}, of which recorded again: {verdict.repeated_steps}")
    print(f"ended by themselves: {json.dumps(dict(verdict.ends), indent=1)}")
    print(f"audit: {verdict.audit.produced} produced, {verdict.audit.dispositions}, {verdict.audit.in_flight_waiting}")
    print("\n".join(["findings:", *verdict.findings[:50]]) if verdict.findings else "findings: none")
    if as_json:
        print(json.dumps(verdict.summary()))


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
