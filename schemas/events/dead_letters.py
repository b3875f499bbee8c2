"""Records that a stage refused, and what operators did with them."""

import msgspec

from schemas.events.base import EventBase
from schemas.parts import Count, Ref, Time


class DeadLetter(EventBase, frozen=True, kw_only=True):
    """A record that a stage could not take, with its original bytes. Its id is `source`; the first one counts.

    `config_digest` is of the settings with which it was refused, as in `StepCompleted`; empty where not known.
    """

    source: Ref
    stage: str
    error: str
    data: bytes
    time_s: Time
    key: bytes | None = None
    headers: dict[str, bytes] = msgspec.field(default_factory=dict)
    attempts: Count = 1
    config_digest: str = ""


class DeadLetterReplayed(EventBase, frozen=True, kw_only=True):
    """The record of the dead letter of `source` was put back, as the record at `replayed`.

    A rollout's dead letter stays its disposition: what was put back is a new rollout. `stage` had refused the record.
    """

    source: Ref
    stage: str
    replayed: Ref
    time_s: Time


class DeadLetterPurged(EventBase, frozen=True, kw_only=True):
    """The dead letter of `source` was deleted; this is all that is left of it.

    `stage`, `error`, `key`, `attempts`, `config_digest` and `refused_s` (its `time_s`) are the dead letter's. `ends`
    are the rollouts whose disposition it was, and `replayed` is where its record had been put back before, which is
    deleted too.
    """

    source: Ref
    stage: str
    error: str
    refused_s: Time
    time_s: Time
    key: bytes | None = None
    attempts: Count = 1
    ends: tuple[Ref, ...] = ()
    replayed: Ref | None = None
    config_digest: str = ""
