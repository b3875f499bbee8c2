"""`eachprompt demo`: the tiny model learns, with everything real, and every rollout is accounted for at the end."""

import argparse
import asyncio
import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from deploy.cli.main import add_json_argument
from deploy.config.run import RunConfig, load
from deploy.errors import FAILED, ConfigError

if TYPE_CHECKING:
    from analysis.views.live import View
    from analysis.views.summary import Summary

DEMO: Final = Path(__file__).parents[2] / "demo.toml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Steps, seed, directory, broker, and any other value of the demo's configuration."""
    parser.add_argument("--steps", type=int, default=50, metavar="N", help="training steps (default 50)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed of prompts and sampling (default 0)")
    parser.add_argument("--dir", type=Path, metavar="DIR", help="new run directory (default: runs/demo-<time>)")
    parser.add_argument("--broker", choices=("auto", "kafka", "embedded"), default="auto", help="which local broker")
    parser.add_argument(
        "--deadline", type=float, default=1200.0, metavar="S", help="seconds it may take (default 1200)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="override one value, for example learner.correction=none; may be repeated",
    )
    add_json_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Trains, writes summary and report, prints. Exit code 1 where the audit is not clean."""
    from analysis.views.live import view_on
    from deploy.config.kept import adopt
    from deploy.config.preflight import check
    from deploy.local.conclusion import as_text
    from deploy.local.run_lock import run_lock
    from deploy.local.session import quiet_clients

    config = _config(arguments)
    held_back = check(config)
    stream = sys.stderr if arguments.json else sys.stdout
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    quiet_clients()
    with run_lock(config.layout.lock), view_on(stream, f"eachprompt demo, seed {config.run.seed}") as view:
        adopt(config)
        view.note(f"run directory {config.directory}")
        summary = asyncio.run(_demo(config, held_back, arguments.deadline, view))
    if arguments.json:
        from deploy.cli.printing import print_json

        print_json(summary)
    else:
        print(f"\n{as_text(summary)}\n\n{config.layout.summary}\n{config.layout.report}")
    return 0 if summary.audit.clean else FAILED


def _config(arguments: argparse.Namespace) -> RunConfig:
    if arguments.steps < 1:
        raise ConfigError(f"--steps is {arguments.steps}; allowed: an integer of at least 1")
    if arguments.deadline <= 0:
        raise ConfigError(f"--deadline is {arguments.deadline:g}; allowed: a number above 0")
    directory: Path = arguments.dir or Path("runs") / time.strftime("demo-%Y%m%d-%H%M%S")
    if directory.exists() and any(directory.iterdir()):
        raise ConfigError(
            f"--dir is {directory}, which is not empty; allowed: a new directory, for the demo starts afresh"
        )
    defaults = [f"run.steps={arguments.steps}", f"run.seed={arguments.seed}", f'broker.kind="{arguments.broker}"']
    # The rate falls over the whole run, be it long or short; its warm-up must end before that.
    defaults.append(f"learner.schedule.warmup_steps={min(3, arguments.steps - 1)}")
    return load(DEMO, directory=directory, overrides=[*defaults, *arguments.set])


async def _demo(config: RunConfig, held_back: int, deadline_s: float, view: "View") -> "Summary":
    from analysis.history.run_log import RunLog
    from analysis.views.watch import Watcher
    from deploy.local.conclusion import conclude
    from deploy.local.session import Session

    async with Session(config, note=view.note) as session:
        view.note(f"{session.broker_kind} broker at {session.bootstrap}; starting the services")
        log = RunLog(session.bootstrap, config.run.id)
        watcher = Watcher(log, config.run.partitions, config.run.steps, view.show)
        await session.serve(until=watcher.until_done(held_back, deadline_s))
        view.note("reading the log: audit, summary and report")
        return await asyncio.to_thread(conclude, config, log, broker=session.broker_kind, restarts=session.restarts)
