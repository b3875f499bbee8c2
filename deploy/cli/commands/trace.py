"""`eachprompt trace`: where the time goes, p50/p95/p99 of every hop from prompt requested to weights applied."""

import argparse

from deploy.cli.main import add_config_arguments, add_json_argument
from deploy.config.run import load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run."""
    add_config_arguments(parser)
    add_json_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Prints a table, or the hops as JSON."""
    from analysis.history.latency import hops
    from analysis.history.read import history_of
    from deploy.cli.printing import print_json, print_table
    from deploy.local.open_log import run_log
    from schemas import TOPICS

    config = load(arguments.config, directory=arguments.dir, overrides=arguments.set)
    with run_log(config) as log:
        found = hops(history_of(log, tuple(TOPICS)))
    if arguments.json:
        print_json({"run": config.run.id, "hops": [{**_plain(hop), "name": hop.name.strip()} for hop in found]})
    else:
        rows = [
            (hop.name, hop.count, *(_shown(value) for value in (hop.p50_s, hop.p95_s, hop.p99_s, hop.max_s)))
            for hop in found
        ]
        print_table(("hop", "count", "p50", "p95", "p99", "max"), rows)
    return 0


def _plain(hop: object) -> dict[str, object]:
    import msgspec

    plain: dict[str, object] = msgspec.to_builtins(hop)
    return plain


def _shown(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if abs(seconds) < 1 else f"{seconds:.2f} s"
