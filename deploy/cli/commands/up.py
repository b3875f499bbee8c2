"""`eachprompt up -c run.toml`: every service of a configuration, shown while it runs, until the last step."""

import argparse
import asyncio
import logging
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from deploy.cli.main import add_config_arguments
from deploy.config.run import RunConfig, load
from deploy.errors import FAILED

if TYPE_CHECKING:
    from analysis.views.live import View
    from analysis.views.live_figures import Snapshot
    from analysis.views.summary import Summary

_LINE_EVERY_S: Final = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The configuration, and whether it stays up after the last step."""
    add_config_arguments(parser)
    parser.add_argument(
        "--keep-serving",
        action="store_true",
        help="stay up after run.steps, with every service idle, until SIGINT or SIGTERM",
    )


def run(arguments: argparse.Namespace) -> int:
    """Checks, starts, supervises and shows; ends with the last step, SIGINT or SIGTERM.

    Exit code 0; 1 where the audit at the end of a finished run is not clean.
    """
    from analysis.views.live import view_on
    from deploy.config.kept import adopt, in_words
    from deploy.config.preflight import check
    from deploy.errors import StoppedError
    from deploy.local.conclusion import as_text
    from deploy.local.run_lock import run_lock
    from deploy.local.session import quiet_clients

    config = load(arguments.config, directory=arguments.dir, overrides=arguments.set)
    check(config)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    quiet_clients()
    summary: Summary | None = None
    with run_lock(config.layout.lock), view_on(sys.stdout, config.run.id, line_every_s=_LINE_EVERY_S) as view:
        if changes := adopt(config):
            view.note(f"changed since the last start: {in_words(changes)}")
        try:
            summary = asyncio.run(_serve(config, view, ends=config.run.steps > 0 and not arguments.keep_serving))
        except StoppedError:
            # Stopping is how a run without an end ends, and how one is interrupted that resumes with the next `up`.
            view.note(f"stopped; eachprompt up --dir {config.directory} resumes it")
    if summary is None:
        return 0
    print(f"\n{as_text(summary)}\n\n{config.layout.summary}\n{config.layout.report}")
    return 0 if summary.audit.clean else FAILED


async def _serve(config: RunConfig, view: "View", *, ends: bool) -> "Summary":
    from analysis.history.run_log import RunLog
    from analysis.views.running_figures import RunningFigures
    from analysis.views.watch import Watcher
    from deploy.local.conclusion import conclude
    from deploy.local.session import Session
    from deploy.local.standing import Standing

    async with Session(config, note=view.note) as session:
        view.note(f"run {config.run.id} in {config.directory}: {session.broker_kind} broker at {session.bootstrap}")
        log = RunLog(session.bootstrap, config.run.id)
        figures = RunningFigures(time.time())
        standing = Standing(config, lambda: session.restarts, view.note)

        def show(now: "Snapshot") -> None:
            for note in figures.notes(now.time_s):
                view.note(note)
            view.show(replace(now, services=standing.in_words))

        watcher = Watcher(log, config.run.partitions, config.run.steps, show, figures)
        await session.serve(until=watcher.until(standing.until_finished(ends)))
        view.note(f"step {config.run.steps} is done; reading the log: audit, summary and report")
        return await asyncio.to_thread(conclude, config, log, broker=session.broker_kind, restarts=session.restarts)
