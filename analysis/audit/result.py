"""What an audit finds: how many rollouts have which disposition, what is in flight, and violations."""

from typing import Final, Literal

import msgspec

from schemas import Ref

WAITS: Final = ("to be scored", "for its group", "for a batch", "for its step")
"""What a rollout in flight can wait for."""

MAX_LISTED: Final = 10_000
"""Findings and ids listed at most; the counts are exact."""

OLDEST_LISTED: Final = 100

Kind = Literal["unaccounted", "duplicated", "altered"]


class Finding(msgspec.Struct, frozen=True):
    """One violation: the rollout it is about, and what the log records of it."""

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
    """The result: counts of rollouts.

    `unaccounted`: without a disposition and in flight at no stage, and references to rollouts that are not on the log;
    `duplicated`: with more than one disposition, or with one recorded twice; `trained_twice`: rollout ids that were
    trained on more than once; `altered`: steps whose digest is not that of what the log says they were trained on.
    `steps_verified`: those whose digest was computed again from the log and agreed.
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
    altered: int = 0
    steps_verified: int = 0

    @property
    def clean(self) -> bool:
        """Whether every rollout has exactly one disposition or is in flight, none was trained on twice, and no step's
        digest contradicts the log."""
        return self.unaccounted == self.duplicated == self.trained_twice == self.altered == 0
