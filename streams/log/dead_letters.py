"""Dead letters: a record that a stage could not take, kept with its original bytes, its source and the reason.

A dead letter's id is where its record was, `<topic>/<partition>@<offset>`, so that one written twice (a crash between
the dead letter and the commit) counts once. A record that was replayed carries its earlier failures in two headers, so
the dead letter of another failure has them all.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from schemas import TOPICS, DeadLetter, Event, Ref, check_schema, decode
from streams.errors import Poison
from streams.record import Output, Record
from streams.telemetry import names

_KEPT_FAILURES: Final = 16
_KEPT_ERROR: Final = 400
"""Failures in the history header, and characters of each one's error: a header must stay far below a record's limit."""

_LONGEST_ERROR: Final = 4000


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """One failure of a record: where it was then, which stage refused it, when (unix seconds), and why."""

    source: Ref
    stage: str
    error: str
    time_s: float


_failures: Final = msgspec.json.Decoder(tuple[Failure, ...])


def place(ref: Ref) -> str:
    """The id of the dead letter of the record at `ref`."""
    return f"{ref.topic}/{ref.partition}@{ref.offset}"


def event_of(record: Record) -> Event:
    """The event of `record`. UndecodableError: none, or a newer one. Poison: its type does not belong on its topic."""
    check_schema(record.headers.get(names.SCHEMA, b""))
    event = decode(record.value)
    if not isinstance(event, TOPICS[record.topic].events):
        raise Poison(f"a {type(event).__name__} does not belong on {record.topic}")
    return event


def dead_letter(record: Record, stage: str, error: str, now_s: float, config_digest: str | None = None) -> Output:
    """The event that keeps `record` for `eachprompt dlq`; it counts the attempts that were made before."""
    event = DeadLetter(
        source=record.ref,
        stage=stage,
        error=error[:_LONGEST_ERROR],
        data=record.value,
        key=record.key,
        headers=record.headers,
        attempts=attempts_before(record.headers) + 1,
        time_s=now_s,
        config_digest=config_digest or "",
    )
    return Output("dead-letters", event, key=place(record.ref), cause=record)


def attempts_before(headers: Mapping[str, bytes]) -> int:
    """How often the record had failed before it was replayed; 0 where the header is absent or invalid."""
    text = headers.get(names.DLQ_ATTEMPTS, b"")
    return int(text) if text.isdigit() and len(text) < 10 else 0


def failures_before(headers: Mapping[str, bytes]) -> tuple[Failure, ...]:
    """Earlier failures, oldest first, only the latest of many; empty where there is no valid header."""
    try:
        return _failures.decode(headers.get(names.DLQ_HISTORY, b"[]"))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ()


def history(dead: DeadLetter) -> tuple[Failure, ...]:
    """Every known failure of the dead letter's record, the latest last."""
    own = Failure(source=dead.source, stage=dead.stage, error=dead.error, time_s=dead.time_s)
    return (*failures_before(dead.headers), own)


def replay_headers(dead: DeadLetter) -> Sequence[tuple[str, bytes]]:
    """The headers with which the dead letter's record is replayed: its own, and its failures so far."""
    failures = [
        msgspec.structs.replace(failure, error=failure.error[:_KEPT_ERROR])
        for failure in history(dead)[-_KEPT_FAILURES:]
    ]
    headers = dict(dead.headers)
    headers[names.DLQ_ATTEMPTS] = str(dead.attempts).encode()
    headers[names.DLQ_HISTORY] = msgspec.json.encode(failures)
    return list(headers.items())
