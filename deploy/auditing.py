"""Reading a run's topics into an audit and a history."""

from typing import Final

from deploy.audit import READING_ORDER, Audit, Ledger
from deploy.history import History
from deploy.runlog import RunLog
from schemas import Ref, UndecodableError, decode

_INPUTS: Final = {"rewards": "rollouts", "groups": "scores", "batches": "groups"}
"""Stage → the topic whose records it finishes."""


def audit_of(log: RunLog, *, history: History | None = None) -> Audit:
    """The audit of everything on the log; what was read is added to `history` as well where one is given.

    What the stages have committed is read first: whatever was finished by then has its end on the topics read later.
    """
    finished = {stage: log.finished(stage, topic) for stage, topic in _INPUTS.items()}
    start = log.log_start("rollouts")
    ledger = Ledger()
    for topic in READING_ORDER:
        for record in log.read(topic):
            ledger.add(record.ref, record.value)
            if history is not None:
                add_record(history, record.ref, record.value)

    def is_finished(stage: str, ref: Ref) -> bool:
        return finished[stage](ref.partition, ref.offset)

    return ledger.close(is_finished, start)


def history_of(log: RunLog, topics: tuple[str, ...], history: History | None = None) -> History:
    """What `topics` say of a run."""
    found = History() if history is None else history
    for topic in topics:
        for record in log.read(topic):
            add_record(found, record.ref, record.value)
    return found


def add_record(history: History, ref: Ref, value: bytes) -> None:
    """Adds a record that decodes; one that does not is in the dead letters."""
    try:
        history.add(decode(value), ref)
    except UndecodableError:
        return
