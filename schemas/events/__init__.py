"""Every event on the log: frozen structs in one tagged union, by subject. One event says one fact.

Evolution: a new field has a default; types and tags never change; golden bytes of every released version stay in tests.
Times are unix seconds. Topics of a `Ref` are the catalogue's short names.
"""

from schemas.events.base import EventBase
from schemas.events.dead_letters import DeadLetter, DeadLetterPurged, DeadLetterReplayed
from schemas.events.earlier_forms import AnyDeadLetter, AnyWeightsApplied
from schemas.events.groups import GroupDropped, GroupEvaluated, GroupReady
from schemas.events.rollouts import GroupRequested, RolloutCompleted, RolloutDisposed, RolloutScored
from schemas.events.training import BatchPlanned, StepCompleted
from schemas.events.weights import (
    CanaryScored,
    WeightsApplied,
    WeightsPublished,
    WeightsRefused,
    application_in,
    report_key,
)

_OneForm = (
    GroupRequested
    | RolloutCompleted
    | RolloutScored
    | GroupReady
    | GroupDropped
    | GroupEvaluated
    | RolloutDisposed
    | BatchPlanned
    | StepCompleted
    | WeightsPublished
    | CanaryScored
    | WeightsRefused
    | DeadLetterReplayed
    | DeadLetterPurged
)

Event = _OneForm | WeightsApplied | DeadLetter

OnWire = _OneForm | AnyWeightsApplied | AnyDeadLetter
"""What a record may hold: two types have an earlier form that said more."""

__all__ = [
    "BatchPlanned",
    "CanaryScored",
    "DeadLetter",
    "DeadLetterPurged",
    "DeadLetterReplayed",
    "Event",
    "EventBase",
    "GroupDropped",
    "GroupEvaluated",
    "GroupReady",
    "GroupRequested",
    "OnWire",
    "RolloutCompleted",
    "RolloutDisposed",
    "RolloutScored",
    "StepCompleted",
    "WeightsApplied",
    "WeightsPublished",
    "WeightsRefused",
    "application_in",
    "report_key",
]
