"""What an audit finds: how many rollouts ended how, what is in flight, and what must not be."""

from typing import Final, Literal

import msgspec

from schemas import Ref

WAITS: Final = ("to be scored", "for its group", "for a batch", "for its step")

MAX_LISTED: Final = 10_000
"""Findings and ids listed at most; the counts are exact."""

OLDEST_LISTED: Final = 100

Kind = Literal["unaccounted", "duplicated"]


class Finding(msgspec.Struct, frozen=True):
    """One thing that must not be: the rollout it is about, and what the log says of it."""

    rollout: str
    ref: Ref
    what: str
    kind: Kind = "unaccounted"


class Waiting(msgspec.Struct, frozen=True):
    """A rollout in flight. `age_s`: from its record to the newest record of the log; `since_s` is unix time."""

    rollout: str
    ref: Ref
    waits: str
    since_s: float
    age_s: float


class Audit(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict. `unaccounted` are rollouts without an end that no stage has in hand, and references to none;
    `duplicated` have more than one end, or one end told twice; `trained_twice` counts rollout ids.
    """

    produced: int
    dispositions: dict[str, int]
    in_flight: int
    unaccounted: int
    duplicated: int
    trained_twice: int
    in_flight_waiting: dict[str, int]
    in_flight_oldest: list[Waiting]
    findings: list[Finding]
    trained_twice_ids: list[str]

    @property
    def clean(self) -> bool:
        return self.unaccounted == 0 and self.duplicated == 0 and self.trained_twice == 0
