"""Dead letters: a record that a stage could not take, kept with its original bytes, its source and the reason."""

from schemas import DeadLetter
from streams.record import Output, Record


def dead_letter(record: Record, stage: str, error: str, now_s: float, attempts: int = 1) -> Output:
    """The event that keeps `record` for `eachprompt dlq`."""
    event = DeadLetter(
        source=record.ref,
        stage=stage,
        error=error,
        data=record.value,
        key=record.key,
        headers=record.headers,
        attempts=attempts,
        time_s=now_s,
    )
    return Output("dead-letters", event, key=f"{record.topic}/{record.partition}@{record.offset}", cause=record)
