"""`eachprompt show`: one record, arrays abbreviated and token ids decoded; or which settings the run had, and when."""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deploy.cli.main import add_config_arguments, add_json_argument
from deploy.config.run import load
from deploy.errors import ConfigError, DeployError

if TYPE_CHECKING:
    from streams.record import Record

_SETTINGS: Final = "settings"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The place, and the run."""
    parser.add_argument(
        "place",
        metavar="TOPIC[/PARTITION[/OFFSET]]",
        help="the newest record where no offset is given; or `settings`: every configuration of the run",
    )
    add_config_arguments(parser)
    add_json_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Prints the record, or the configurations."""
    from analysis.history.records import as_text, described
    from deploy.cli.printing import print_json
    from deploy.local.open_log import run_log

    if arguments.place == _SETTINGS:
        return _show_settings(arguments)
    topic, partition, offset = parse_place(arguments.place)
    config = load(arguments.config, directory=arguments.dir, overrides=arguments.set)
    with run_log(config) as log:
        record = _find(log.read(topic), partition, offset)
    if record is None:
        raise DeployError(f"there is no record at {arguments.place} of run {config.run.id}")
    shown: dict[str, Any] = described(record, Path(config.model.path))
    if arguments.json:
        print_json(shown)
    else:
        print(as_text(shown))
    return 0


def _show_settings(arguments: argparse.Namespace) -> int:
    from deploy.cli.printing import print_json, print_table
    from deploy.config.kept import in_words, kept_configurations

    directory = load(arguments.config, directory=arguments.dir, overrides=arguments.set).directory
    kept = kept_configurations(directory)
    if arguments.json:
        print_json({"configurations": kept})
        return 0
    print_table(
        ("file", "in use since", "changed"),
        [(one.file, _when(one.since_s), in_words(one.changes, len(one.changes)) or "-") for one in kept],
    )
    return 0


def _when(time_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(time_s))


def parse_place(place: str) -> tuple[str, int | None, int | None]:
    """`scores/2/17` → (scores, 2, 17). ConfigError: anything else."""
    from schemas import TOPICS

    topic, _, rest = place.partition("/")
    if topic not in TOPICS:
        raise ConfigError(f"topic is {topic!r}; allowed: {', '.join(TOPICS)}, or {_SETTINGS}")
    numbers = rest.split("/") if rest else []
    if len(numbers) > 2 or not all(number.isdigit() for number in numbers):
        raise ConfigError(f"place is {place!r}; allowed: TOPIC, TOPIC/PARTITION or TOPIC/PARTITION/OFFSET")
    partition = int(numbers[0]) if numbers else None
    return topic, partition, int(numbers[1]) if len(numbers) == 2 else None


def _find(records: "Any", partition: int | None, offset: int | None) -> "Record | None":
    found: Record | None = None
    for record in records:
        if partition is not None and record.partition != partition:
            continue
        if offset is None and (found is None or record.time_s >= found.time_s):
            found = record
        elif record.offset == offset:
            return record  # type: ignore[no-any-return]
    return found
