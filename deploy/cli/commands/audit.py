"""`eachprompt audit`: the disposition of every rollout, proved from the raw topics."""

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from deploy.cli.main import add_config_arguments, add_json_argument
from deploy.config.run import load
from deploy.errors import FAILED, ConfigError

if TYPE_CHECKING:
    from analysis.audit.result import Audit

_UNITS_S: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_LATEST_S: Final = 1e11  # the bound that events have, too
_SHOWN: Final = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run, and which of its rollouts are judged."""
    when = "unix seconds, ISO 8601 (UTC where no zone is given), or an age such as 90s, 15m, 6h, 2d"
    parser.add_argument("--since", type=moment, metavar="TIME", help=f"judge rollouts written from then on: {when}")
    parser.add_argument("--until", type=moment, metavar="TIME", help="judge rollouts written before then")
    parser.add_argument(
        "--digests",
        action="store_true",
        help="also read again what each step was trained on, and compare it with the step's digest",
    )
    add_config_arguments(parser)
    add_json_argument(parser)


def moment(text: str, now_s: float | None = None) -> float:
    """A time as unix seconds. argparse.ArgumentTypeError: it is none; the message names what is allowed."""
    try:
        moment_s = _seconds(text, time.time() if now_s is None else now_s)
    except ValueError:
        moment_s = math.nan
    if not 0 <= moment_s < _LATEST_S:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no time; allowed: unix seconds, 2026-01-31T12:00, or an age such as 90s, 15m, 6h, 2d"
        )
    return moment_s


def _seconds(text: str, now_s: float) -> float:
    if text[-1:] in _UNITS_S and text[:1].isdigit():
        return now_s - float(text[:-1]) * _UNITS_S[text[-1]]
    if text.replace(".", "", 1).isdigit():
        return float(text)
    parsed = datetime.fromisoformat(text)
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()


def run(arguments: argparse.Namespace) -> int:
    """Prints the audit; exit code 1 where a rollout is unaccounted for, disposed of twice or trained twice, or where a
    step was trained on something else than the log says."""
    from analysis.history.read import Period, audit_of
    from deploy.cli.printing import print_json
    from deploy.local.open_log import run_log
    from schemas import StepCompleted

    if None not in (arguments.since, arguments.until) and arguments.since >= arguments.until:
        raise ConfigError("--since is not before --until, so no rollout would be judged; allowed: an earlier --since")
    config = load(arguments.config, directory=arguments.dir, overrides=arguments.set)
    period = Period(arguments.since, arguments.until)
    with run_log(config) as log, _progress() as on_progress:
        audit = audit_of(log, period=period, on_progress=on_progress, digests=arguments.digests)
        over = (
            0
            < config.run.steps
            <= max((event.step for event, _ in log.events("steps") if isinstance(event, StepCompleted)), default=0)
        )
    if arguments.json:
        print_json(audit)
    else:
        _print(audit, arguments.digests, over)
        _print_changes(config.directory)
    return 0 if audit.clean else FAILED


def _print(audit: "Audit", digests: bool, over: bool) -> None:
    """`over`: the run has its last step, so that what is in flight is left over and waits for nothing."""
    from deploy.cli.printing import print_table

    rows: list[tuple[str, object]] = [("produced", audit.produced)]
    rows += [(f"  {name}", n) for name, n in audit.dispositions.items() if n]
    rows += [("  left over, after the last step" if over else "  in flight", audit.in_flight)]
    rows += [(f"    {'' if over else 'waiting '}{name}", n) for name, n in audit.in_flight_waiting.items() if n]
    rows += [("unaccounted", audit.unaccounted), ("duplicated", audit.duplicated)]
    rows += [("trained twice", audit.trained_twice)]
    print_table(("rollouts", ""), rows)
    if digests or audit.altered:
        print(f"\nsteps whose digest agrees with the log: {audit.steps_verified}, contradicts it: {audit.altered}")
    if audit.in_flight_oldest and not over:
        print("\nin flight, the oldest:")
        oldest = audit.in_flight_oldest[:_SHOWN]
        print_table(
            ("rollout", "record", "waits", "age"),
            [(w.rollout, f"{w.ref.topic}/{w.ref.partition}/{w.ref.offset}", w.waits, _age(w.since_s)) for w in oldest],
        )
    for finding in audit.findings:
        print(f"{finding.kind}: {finding.rollout} {finding.what}")
    for rollout in audit.trained_twice_ids:
        print(f"trained twice: {rollout}")


def _print_changes(directory: Path) -> None:
    """What the run was trained with was not always the same: one line a change."""
    from deploy.config.kept import in_words, kept_configurations

    for kept in kept_configurations(directory)[1:]:
        since = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(kept.since_s))
        print(f"settings changed at {since} ({kept.file}): {in_words(kept.changes)}")


def _age(since_s: float) -> str:
    age_s = max(0.0, time.time() - since_s)
    return f"{age_s:.0f} s" if age_s < 600 else f"{age_s / 60:.0f} min" if age_s < 36_000 else f"{age_s / 3600:.0f} h"


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None] | None]:
    """A progress bar on standard error; nothing where that is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:>12}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bars = {}

        def advance(topic: str, done: int, total: int) -> None:
            if topic not in bars:
                bars[topic] = progress.add_task(topic, total=total)
            progress.update(bars[topic], completed=done, total=total)

        yield advance
