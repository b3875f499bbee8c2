"""`eachprompt topics`: the run's topics, how many records they hold, and the lag of each reader."""

import argparse
from typing import Any

from deploy.cli.main import add_config_arguments, add_json_argument
from deploy.config.run import load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run, and whether to make the topics."""
    parser.add_argument("--create", action="store_true", help="make the topics that are missing")
    add_config_arguments(parser)
    add_json_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Prints one row per topic."""
    from analysis.history.run_log import backlog
    from deploy.cli.printing import print_json, print_table
    from deploy.local.open_log import run_log
    from deploy.local.session import create_run_topics
    from schemas import TOPICS
    from schemas.services import SERVICES
    from streams.log.admin import Admin

    config = load(arguments.config, directory=arguments.dir, overrides=arguments.set)
    with run_log(config, fresh=arguments.create) as log:
        if arguments.create:
            create_run_topics(config, log.bootstrap)
        with Admin(log.bootstrap) as admin:
            present = admin.describe([log.full(name) for name in TOPICS])
            names = [name for name in TOPICS if log.full(name) in present]
            full = [log.full(name) for name in names]
            starts, ends = admin.start_offsets(full), admin.end_offsets(full)
            complete = all(topic in names for service in SERVICES.values() for topic in service.commits)
            lags = backlog(admin, config.run.id) if complete else {}
    rows = []
    for name in names:
        held = sum(end - starts[key] for key, end in ends.items() if key.topic == log.full(name))
        events = ", ".join(kind.__name__ for kind in TOPICS[name].events)
        partitions = present[log.full(name)].partitions
        rows.append((name, partitions, TOPICS[name].cleanup, held, lags.get(name, {}), events))
    if arguments.json:
        print_json({"run": config.run.id, "topics": [_as_json(*row) for row in rows]})
    else:
        shown = [(*row[:4], ", ".join(f"{lag} {reader}" for reader, lag in row[4].items()), row[5]) for row in rows]
        print_table(("topic", "partitions", "cleanup", "offsets", "lag of", "events"), shown)
    missing = [name for name in TOPICS if name not in names]
    if missing and not arguments.json:
        print(f"missing: {', '.join(missing)} (make them with --create)")
    return 0


def _as_json(
    name: str, partitions: int, cleanup: str, offsets: int, lags: dict[str, int], events: str
) -> dict[str, Any]:
    """`reader` and `lag` are of the service whose input the topic is; `lags` are of all that commit it."""
    reader, lag = next(iter(lags.items()), (None, None))
    return {
        "name": name,
        "partitions": partitions,
        "cleanup": cleanup,
        "offsets": offsets,
        "lag": lag,
        "reader": reader,
        "lags": lags,
        "events": events,
    }
