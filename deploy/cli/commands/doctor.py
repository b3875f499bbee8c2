"""`eachprompt doctor`: checks this machine; each finding with its fix. Exit code 1 where something blocks."""

import argparse
from pathlib import Path

from deploy.cli.main import add_config_arguments, add_json_argument
from deploy.config.run import load
from deploy.errors import FAILED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run to check for, if any."""
    add_config_arguments(parser)
    add_json_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Prints one line per finding, then the fixes."""
    from deploy.cli.printing import print_json, print_table
    from deploy.local.doctor import checks

    given = arguments.config is not None or (arguments.dir is not None and (arguments.dir / "run.toml").is_file())
    config = load(arguments.config, directory=arguments.dir, overrides=arguments.set) if given else None
    directory: Path = config.directory if config is not None else arguments.dir or Path("runs")
    found = checks(config, directory)
    blocked = [check for check in found if check.level == "blocks"]
    if arguments.json:
        print_json({"blocks": len(blocked), "checks": found})
    else:
        print_table(("", "what", "finding"), [(check.level, check.name, check.finding) for check in found])
        for check in found:
            if check.fix:
                print(f"{check.name}: {check.fix}")
    return FAILED if blocked else 0
