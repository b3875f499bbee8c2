"""`eachprompt audit`: how every rollout ended, proved from the raw topics."""

import argparse

from deploy.command import add_config_arguments, add_json_argument
from deploy.config import load
from deploy.errors import FAILED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run."""
    add_config_arguments(parser)
    add_json_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Prints the audit; exit code 1 where a rollout is unaccounted for or was trained twice."""
    from deploy.auditing import audit_of
    from deploy.printing import print_json, print_table
    from deploy.runlog import run_log

    config = load(arguments.config, directory=arguments.dir, overrides=arguments.set)
    with run_log(config) as log:
        audit = audit_of(log)
    if arguments.json:
        print_json(audit)
    else:
        rows: list[tuple[str, object]] = [("produced", audit.produced)]
        rows += [(f"  {name}", n) for name, n in audit.dispositions.items() if n]
        rows += [("  in flight", audit.in_flight)]
        rows += [(f"    waiting {name}", n) for name, n in audit.in_flight_waiting.items() if n]
        rows += [("unaccounted", audit.unaccounted), ("trained twice", audit.trained_twice)]
        print_table(("rollouts", ""), rows)
        for finding in audit.findings:
            print(f"{finding.rollout}: {finding.what}")
        for rollout in audit.trained_twice_ids:
            print(f"{rollout}: trained more than once")
    return 0 if audit.clean else FAILED
