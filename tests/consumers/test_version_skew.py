"""A rolling upgrade: services whose neighbours write newer and older minor versions work on, and refuse a major one.

The running services write every other event as a newer version would, with fields that nobody knows, and the others as
an older one, without the fields that it did not have.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from schemas import (
    BatchPlanned,
    DeadLetter,
    Event,
    GroupDropped,
    GroupEvaluated,
    GroupReady,
    RolloutCompleted,
    RolloutScored,
    StepCompleted,
    encode,
)
from streams.log import clients as streams_log
from streams.log.clients import Log, Writer
from streams.record import Output
from streams.telemetry import names
from tests.builders import step_completed
from tests.consumers.test_services import Everything, MakeRollout, log, serving

__all__ = ["log"]


def newer(event: Event) -> bytes:
    """As a version writes it that has fields more, in the event and in what it holds."""
    fields = msgspec.msgpack.decode(encode(event))

    def grown(value: Any) -> Any:
        match value:
            case dict():
                return {**{key: grown(inner) for key, inner in value.items()}, "a_field_of_tomorrow": [{"deep": None}]}
            case list():
                return [grown(inner) for inner in value]
            case _:
                return value

    # Dictionaries by name, such as metrics and references, are no structs: they stay as they are.
    kept = {name: fields[name] for name in ("metrics", "reference", "headers") if name in fields}
    return msgspec.msgpack.encode({**grown(fields), **kept})


_UNKNOWN_YESTERDAY: Final = {
    RolloutScored: ("passed", "components", "newest_version", "finish_reason"),
    GroupReady: ("pass_rate", "partial", "unanimous"),
    BatchPlanned: ("loads", "fill", "imbalance", "staleness_max", "staleness_mean", "waited_s"),
    StepCompleted: ("tokens", "sequences", "rejected", "wall_s", "waited_s"),
}
"""Fields with defaults that only inform: an event without them ends as it would with them."""


def older(event: Event) -> bytes:
    """As a version wrote it that did not have some of the fields."""
    fields = msgspec.msgpack.decode(encode(event))
    for name in _UNKNOWN_YESTERDAY.get(type(event), ()):
        fields.pop(name, None)
    return msgspec.msgpack.encode(fields)


class Skewed:
    """An encoder of mixed versions; it counts what it wrote, by version and type."""

    def __init__(self) -> None:
        self.written: defaultdict[str, Counter[type]] = defaultdict(Counter)
        self._numbers: defaultdict[type, Iterator[int]] = defaultdict(count)

    def __call__(self, event: Event) -> bytes:
        make: Callable[[Event], bytes] = (newer, older)[next(self._numbers[type(event)]) % 2]
        data = make(event)
        self.written[make.__name__][type(event)] += data != encode(event)
        return data


async def test_services_read_what_newer_and_older_ones_write(
    log: Log, model: Path, tmp_path: Path, make_rollout: MakeRollout, monkeypatch: pytest.MonkeyPatch
) -> None:
    skewed, seen = Skewed(), Everything(log)
    monkeypatch.setattr(streams_log, "encode", skewed)
    monkeypatch.setattr(streams_log, "schema_header", lambda event: f"{type(event).__name__}/1.7".encode())
    async with serving(log, model, tmp_path), Writer(log) as writer:
        for name in range(6):
            for index, answer in enumerate("4544"):
                rollout = make_rollout(f"3+1={answer}", group_id=f"p.{name}", index=index)
                await writer.write(Output("rollouts", rollout, key=rollout.group_id))
        await write_major(log, make_rollout("3+1=4", group_id="p.9"))
        for batch in range(3):
            await seen.read_until(f"batch {batch}", lambda: len(seen.of(BatchPlanned)) == batch + 1)  # noqa: B023
            await writer.write(Output("steps", step_completed(batch)))
        await seen.read_until("the dead letter", lambda: len(seen.of(DeadLetter)) == 1)
    ends = Counter(ref for ref, _ in seen.ends())
    assert set(ends.values()) == {1} and len(ends) == 24
    assert {end for _, end in seen.ends()} == {"planned"}
    (dead,) = seen.of(DeadLetter)
    assert (dead.stage, dead.headers[names.SCHEMA]) == ("rewards", b"RolloutCompleted/3.0")
    assert "RolloutCompleted/3 is newer than 2" in dead.error
    assert not seen.of(GroupDropped) + seen.of(GroupEvaluated)
    for version in ("newer", "older"):
        assert all(skewed.written[version][kind] for kind in (RolloutScored, GroupReady, BatchPlanned)), version
    assert skewed.written["newer"][RolloutCompleted]


async def write_major(log: Log, rollout: RolloutCompleted) -> None:
    """A record that an incompatible version wrote, though this one could decode it."""
    producer = log.producer()
    await producer.start()
    headers = [(names.SCHEMA, b"RolloutCompleted/3.0")]
    await producer.send_and_wait(log.full("rollouts"), encode(rollout), partition=0, headers=headers)
    await producer.stop()
