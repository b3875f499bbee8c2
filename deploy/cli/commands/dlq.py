"""`eachprompt dlq list | show ID | replay ID… | purge`: the records that a stage could not process.

An ID is the place of the refused record, `rollouts/2@17`; it stays the same as long as the dead letter is kept.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deploy.cli.main import add_config_arguments, add_json_argument
from deploy.config.run import RunConfig, load
from deploy.errors import ConfigError

if TYPE_CHECKING:
    from analysis.history.dead_letters import DeadLetterEntry
    from analysis.history.run_log import RunLog

_UNITS_S: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SHORT_ERROR: Final = 70


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to do, and the run."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="every dead letter in one line")
    listing.add_argument("--topic", metavar="TOPIC", help="only records of this topic")
    listing.add_argument("--stage", metavar="STAGE", help="only what this stage refused")
    listing.add_argument("--all", action="store_true", help="those that were replayed or purged as well")
    show = actions.add_parser("show", help="one dead letter: bytes, source, error and history")
    show.add_argument("id", metavar="ID", help="as the list prints it, for example rollouts/2@17")
    replay = actions.add_parser("replay", help="write records to their topics again, with their history")
    replay.add_argument("ids", metavar="ID", nargs="+", help="as the list prints it, for example rollouts/2@17")
    purge = actions.add_parser("purge", help="delete dead letters; their rollouts stay accounted for in `audit`")
    purge.add_argument("--older-than", metavar="AGE", help="only those older than this, for example 90m, 12h or 7d")
    purge.add_argument("--yes", action="store_true", help="do it; without it, only say what would be deleted")
    for action in (listing, show, replay, purge):
        add_config_arguments(action)
        add_json_argument(action)


def run(arguments: argparse.Namespace) -> int:
    """Runs the action. ConfigError: not an ID, topic or age; AnalysisError: there is no such dead letter."""
    from analysis.history.dead_letters import parse_id
    from deploy.local.open_log import run_log

    act, given = _ACTIONS[arguments.action], vars(arguments)
    arguments.ids = [parse_id(text) for text in given.get("ids", [arguments.id] if "id" in given else [])]
    arguments.before_s = _before(given.get("older_than"))
    if (topic := given.get("topic")) is not None:
        from schemas import TOPICS

        if topic not in TOPICS:
            raise ConfigError(f"--topic is {topic!r}; allowed: {', '.join(TOPICS)}")
    config = load(arguments.config, directory=arguments.dir, overrides=arguments.set)
    with run_log(config) as log:
        return act(arguments, config, log)


def _list(arguments: argparse.Namespace, config: RunConfig, log: "RunLog") -> int:
    from analysis.history.dead_letters import read_dead_letters
    from deploy.cli.printing import print_json, print_table

    entries = [
        entry
        for entry in read_dead_letters(log).values()
        if (arguments.all or entry.state == "dead")
        and arguments.topic in (None, entry.event.source.topic)
        and arguments.stage in (None, entry.event.stage)
    ]
    if arguments.json:
        print_json({"run": config.run.id, "dead_letters": [_as_json(entry) for entry in entries]})
        return 0
    rows = [
        (row["id"], row["stage"], row["attempts"], row["bytes"], row["time"], row["state"], _short(row["error"]))
        for row in map(_as_json, entries)
    ]
    if rows:
        print_table(("id", "stage", "attempts", "bytes", "refused", "state", "error"), rows)
    print(f"{len(rows)} dead letters in run {config.run.id}")
    return 0


def _show(arguments: argparse.Namespace, config: RunConfig, log: "RunLog") -> int:
    import base64

    from analysis.history.dead_letters import chosen, read_dead_letters, record_in
    from analysis.history.records import as_text, clock, described
    from deploy.cli.printing import print_json
    from streams.log.dead_letters import history, place

    (entry,) = chosen(read_dead_letters(log, arguments.ids), arguments.ids)
    event = entry.event
    shown: dict[str, Any] = _as_json(entry) | {
        "history": [
            {"source": place(f.source), "stage": f.stage, "error": f.error, "time": clock(f.time_s)}
            for f in history(event)
        ],
        "original": described(record_in(entry), Path(config.model.path)),
    }
    if arguments.json:
        key = None if event.key is None else base64.b64encode(event.key).decode()
        headers = {name: base64.b64encode(value).decode() for name, value in event.headers.items()}
        data = base64.b64encode(event.data).decode()
        print_json(shown | {"data_base64": data, "key_base64": key, "headers_base64": headers})
        return 0
    print(as_text(shown))
    print("\n".join(_hex_lines(event.data)))
    return 0


def _replay(arguments: argparse.Namespace, config: RunConfig, log: "RunLog") -> int:
    from analysis.history.dead_letters import chosen, put_back, read_dead_letters
    from deploy.cli.printing import print_json
    from streams.log.dead_letters import place

    ids = list(dict.fromkeys(arguments.ids))
    placed = put_back(log, config.run.partitions, chosen(read_dead_letters(log, ids), ids))
    where = {name: place(ref) for name, ref in placed.items()}
    if arguments.json:
        print_json({"run": config.run.id, "replayed": where})
    else:
        for name, now in where.items():
            print(f"{name} was replayed as {now}")
    return 0


def _purge(arguments: argparse.Namespace, config: RunConfig, log: "RunLog") -> int:
    from analysis.history.dead_letters import purge, read_dead_letters
    from deploy.cli.printing import print_json

    before_s = arguments.before_s
    if arguments.yes:
        purged, pending = purge(log, before_s), 0
    else:
        entries = [entry for entry in read_dead_letters(log).values() if not entry.purged]
        purged, pending = 0, sum(before_s is None or entry.event.time_s < before_s for entry in entries)
    if arguments.json:
        print_json({"run": config.run.id, "purged": purged, "would_purge": pending})
    elif arguments.yes:
        print(f"{purged} dead letters deleted")
    else:
        print(f"{pending} dead letters would be deleted; nothing was deleted, for --yes was not given")
    return 0


def _as_json(entry: "DeadLetterEntry") -> dict[str, Any]:
    from analysis.history.records import clock
    from streams.log.dead_letters import place

    event = entry.event
    return {
        "id": entry.id,
        "topic": event.source.topic,
        "partition": event.source.partition,
        "offset": event.source.offset,
        "stage": event.stage,
        "error": event.error,
        "attempts": event.attempts,
        "bytes": entry.bytes,
        "key": None if event.key is None else event.key.decode(errors="replace"),
        "time": clock(event.time_s),
        "time_s": event.time_s,
        "dead_letter": place(entry.ref),
        "state": entry.state,
        "replayed_as": None if entry.replayed is None else place(entry.replayed),
    }


def _before(age: str | None) -> float | None:
    """The unix time `age` ago. ConfigError: it is not an age."""
    if age is None:
        return None
    number, unit = age[:-1], age[-1:]
    if unit not in _UNITS_S or not number.isdigit():
        raise ConfigError(f"--older-than is {age!r}; allowed: a number and one of s, m, h, d, such as 12h")
    return time.time() - int(number) * _UNITS_S[unit]


def _short(error: str) -> str:
    line = " ".join(error.split())
    return line if len(line) <= _SHORT_ERROR else line[: _SHORT_ERROR - 1] + "…"


def _hex_lines(data: bytes, limit: int = 1024, width: int = 16) -> list[str]:
    """Offset, bytes and their printable characters; the first `limit` bytes."""
    lines = [
        f"{at:08x}  {data[at : at + width].hex(' '):<{3 * width}} "
        + "".join(chr(byte) if 32 <= byte < 127 else "." for byte in data[at : at + width])
        for at in range(0, min(limit, len(data)), width)
    ]
    return [*lines, f"… {len(data) - limit} more bytes; --json has all"] if len(data) > limit else lines


_ACTIONS: Final[dict[str, Callable[[argparse.Namespace, RunConfig, "RunLog"], int]]] = {
    "list": _list,
    "show": _show,
    "replay": _replay,
    "purge": _purge,
}
