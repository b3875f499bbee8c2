"""`eachprompt show TOPIC[/PARTITION[/OFFSET]]`: one record, arrays abbreviated, token ids decoded."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.cli.main import add_config_arguments, add_json_argument
from deploy.config.run import load
from deploy.errors import ConfigError, DeployError

if TYPE_CHECKING:
    from streams.record import Record


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The place, and the run."""
    parser.add_argument(
        "place", metavar="TOPIC[/PARTITION[/OFFSET]]", help="the newest record where no offset is given"
    )
    add_config_arguments(parser)
    add_json_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Prints the record."""
    from analysis.history.records import as_text, described
    from deploy.cli.printing import print_json
    from deploy.local.open_log import run_log

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


def parse_place(place: str) -> tuple[str, int | None, int | None]:
    """`scores/2/17` → (scores, 2, 17). ConfigError: anything else."""
    from schemas import TOPICS

    topic, _, rest = place.partition("/")
    if topic not in TOPICS:
        raise ConfigError(f"topic is {topic!r}; allowed: {', '.join(TOPICS)}")
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
