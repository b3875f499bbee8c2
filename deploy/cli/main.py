"""The `eachprompt` command: one module per subcommand, imported only when it is the one requested.

Exit codes: 0 fine, 1 failed, 2 usage or configuration error, reported in one line on standard error.
"""

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn, Protocol, cast

from deploy.errors import FAILED, USAGE, DeployError

SUBCOMMANDS: Final = {
    "demo": "train the tiny model that ships with the project, watch it learn, and check every rollout",
    "up": "start the broker and all services of a configuration, until the last step or until stopped",
    "run": "run one service",
    "topics": "the run's topics: records, partitions, and how far their readers are",
    "status": "what every service does and waits for",
    "doctor": "check this machine; each finding with its fix",
    "audit": "prove from the raw topics how every rollout ended",
    "dlq": "dead letters, the records that could not be processed: list, show, replay, purge",
    "show": "print one record of a topic",
    "trace": "where the time goes between prompt and weights",
    "weights": "published weights: list, show, export as a directory that transformers and vLLM load",
    "schema": "a JSON Schema of the TOML, with which an editor completes and checks it",
}


_DESCRIPTION: Final = "Reinforcement learning of language models on an event log."

_EPILOG: Final = (
    "Start with `eachprompt doctor` and `eachprompt demo`; then `eachprompt up -c FILE.toml` for a run of your own; "
    "the others with `--dir RUN`, the run directory, while it runs or afterwards."
)


class Subcommand(Protocol):
    """What each module below `deploy.cli.commands` provides."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declares its arguments."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Runs it; returns the exit code."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Prints the error and where help is; ends with exit code 2."""
        self.exit(USAGE, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv` (default: the process's own); returns the exit code."""
    try:
        chosen, arguments = _parse(list(sys.argv[1:] if argv is None else argv))
        if arguments.subcommand != "run":
            # A tool recovers from what Kafka's clients log (a leader that has just moved); a service has a file for it.
            for client in ("aiokafka", "kafka"):
                logging.getLogger(client).setLevel(logging.CRITICAL)
        return chosen.run(arguments)
    except KeyboardInterrupt:
        return _fail("interrupted", FAILED)
    except BrokenPipeError:
        # Whoever read our output has ended (`| head`); Python would report that again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:  # the command's boundary: what is expected becomes one line, what is not a traceback
        code = _exit_code(error)
        if code is None:
            raise
        return _fail(str(error), code)


def _parse(given: list[str]) -> tuple[Subcommand, argparse.Namespace]:
    parser = Parser(prog="eachprompt", description=_DESCRIPTION, epilog=_EPILOG)
    subparsers = parser.add_subparsers(dest="subcommand", required=True, metavar="SUBCOMMAND")
    chosen: Subcommand | None = None
    for name, summary in SUBCOMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        if name == next((word for word in given if not word.startswith("-")), None):
            chosen = cast(Subcommand, importlib.import_module(f"deploy.cli.commands.{name}"))
            chosen.add_arguments(subparser)
    arguments = parser.parse_args(given)
    assert chosen is not None
    return chosen, arguments


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """-c, --dir and --set, for every subcommand that works on a run."""
    parser.add_argument(
        "-c", "--config", type=Path, metavar="FILE.toml", help="configuration (default: run.toml of --dir)"
    )
    parser.add_argument("--dir", type=Path, metavar="DIR", help="run directory (default with -c: runs/<run id>)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="override one value, for example learner.schedule=constant; may be repeated",
    )


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    """--json, for every subcommand that prints a report."""
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output, logs elsewhere")


def _exit_code(error: Exception) -> int | None:
    """The exit code of an error that a user is meant to see; None for a defect of this program."""
    if isinstance(error, DeployError):
        return error.exit_code
    from analysis.errors import AnalysisError
    from streams.broker import BrokerError
    from streams.errors import ConfigurationError, StreamsError
    from streams.log.admin import AdminError
    from streams.processes.child import ChildError

    if isinstance(error, AnalysisError):
        return error.exit_code
    if isinstance(error, ConfigurationError):
        return USAGE
    return FAILED if isinstance(error, (StreamsError, BrokerError, AdminError, ChildError, OSError)) else None


def _fail(message: str, code: int) -> int:
    print(f"eachprompt: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
