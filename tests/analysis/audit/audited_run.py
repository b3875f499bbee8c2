"""The records of a simulated run, audited or with one of them replaced."""

from collections.abc import Callable
from typing import Any

from analysis.audit.ledger import Ledger
from analysis.audit.result import Audit
from schemas import (
    Ref,
    decode,
    encode,
)

Records = list[tuple[Ref, bytes]]
Simulate = Callable[..., Any]


def audited(records: Records, **close: Any) -> Audit:
    ledger = Ledger()
    for ref, value in records:
        ledger.add(ref, value)
    return ledger.close(**close)


def replaced(records: Records, topic: str, change: Callable[[Any], Any | None]) -> Records:
    """The records with the first event of `topic` that `change` answers for replaced by its answer."""
    changed = list(records)
    for index, (ref, value) in enumerate(records):
        if ref.topic == topic and (event := change(decode(value))) is not None:
            changed[index] = (ref, encode(event))
            return changed
    raise AssertionError(f"nothing to change on {topic}")
