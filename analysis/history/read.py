"""Reading a run's topics into an audit and a history."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from analysis.audit.excused import STAGES
from analysis.audit.facts import Window
from analysis.audit.ledger import READING_ORDER, Ledger
from analysis.audit.result import Audit
from analysis.audit.trained import TrainedDigests
from analysis.history.history import History
from analysis.history.run_log import RunLog
from schemas import Ref, UndecodableError, decode
from streams.log.admin import Admin
from streams.record import Record

_CLOCKS_S: Final = 60.0
"""Writers stamp their records: by clock differences an effect may look this much older than its cause."""

_REPORT_EVERY: Final = 5000

OnProgress = Callable[[str, int, int], None]
"""Called with a topic, how many of its records were read, and how many it has (an upper bound)."""


@dataclass(frozen=True)
class Period:
    """Which rollouts are judged: those written in [since_s, until_s), unix seconds; None is no limit."""

    since_s: float | None = None
    until_s: float | None = None


def audit_of(
    log: RunLog,
    *,
    history: History | None = None,
    period: Period | None = None,
    on_progress: OnProgress | None = None,
    digests: bool = False,
) -> Audit:
    """The audit of the log; the records are added to `history` as well where one is given.

    With `digests` it also computes again what each step was trained on, for which the trained rollouts are decoded.

    The stages' commits are read first: whatever was finished by then has its disposition on the topics read later.
    Of the topics other than `rollouts` everything from the start of the period on is read, since dispositions come
    after rollouts.
    """
    period = period or Period()
    finished = {stage: log.finished(stage, topic) for stage, topic in STAGES.items()}
    sizes, window = _window(log, period)
    ledger = Ledger(window)
    trained = TrainedDigests() if digests else None
    for topic in READING_ORDER:
        first_s = period.since_s
        if first_s is not None and topic != "rollouts":
            first_s -= _CLOCKS_S
        until_s = period.until_s if topic == "rollouts" else None
        count = 0
        for record in log.read(topic, since_s=first_s, until_s=until_s):
            ledger.add(record.ref, record.value, record.time_s)
            if history is not None:
                add_record(history, record.ref, record.value)
            if trained is not None and (topic in ("steps", "batches") or trained.wants(record.ref)):
                _add_trained(trained, record)
            count += 1
            if on_progress is not None and count % _REPORT_EVERY == 0:
                on_progress(topic, count, sizes[topic])
        if on_progress is not None:
            on_progress(topic, count, count)

    def is_finished(stage: str, ref: Ref) -> bool:
        return finished[stage](ref.partition, ref.offset)

    return ledger.close(is_finished, window.first, None if trained is None else trained.judge())


def _add_trained(trained: TrainedDigests, record: Record) -> None:
    try:
        event = decode(record.value)
    except UndecodableError:
        return
    trained.add(event, record.ref)


def _window(log: RunLog, period: Period) -> tuple[dict[str, int], Window]:
    """Topic → how many offsets there are to read, and which offsets of `rollouts` are judged."""
    with Admin(log.bootstrap) as admin:
        full = {topic: log.full(topic) for topic in READING_ORDER}
        starts, ends = admin.start_offsets(full.values()), admin.end_offsets(full.values())
        sizes = {
            topic: sum(end - starts[key] for key, end in ends.items() if key.topic == name)
            for topic, name in full.items()
        }
        first = {key.partition: offset for key, offset in starts.items() if key.topic == full["rollouts"]}
        if period.since_s is not None:
            found = admin.offsets_at([full["rollouts"]], int(period.since_s * 1000))
            first = {key.partition: offset for key, offset in found.items()}
        end = None
        if period.until_s is not None:
            found = admin.offsets_at([full["rollouts"]], int(period.until_s * 1000))
            end = {key.partition: offset for key, offset in found.items()}
    return sizes, Window(first, end)


def history_of(log: RunLog, topics: tuple[str, ...], history: History | None = None) -> History:
    """The history of a run as `topics` record it, added to `history` where one is given."""
    found = History() if history is None else history
    for topic in topics:
        for record in log.read(topic):
            add_record(found, record.ref, record.value)
    return found


def add_record(history: History, ref: Ref, value: bytes) -> None:
    """Adds a record; one that does not decode is skipped (it is in the dead letters)."""
    try:
        history.add(decode(value), ref)
    except UndecodableError:
        return
