"""What happened in a run, gathered from its events for the live view, the summary, the report and the trace.

    history = History()
    for event, record in log.events("steps"):
        history.add(event, record.ref)

Pure; events may come in any order and more than once (the first record of a step counts, as everywhere).
"""

from dataclasses import dataclass

from schemas import (
    BatchPlanned,
    CanaryScored,
    DeadLetter,
    Event,
    GroupDropped,
    GroupEvaluated,
    GroupReady,
    GroupRequested,
    Member,
    Purpose,
    Ref,
    RolloutCompleted,
    RolloutDisposed,
    RolloutScored,
    RolloutTimings,
    StepCompleted,
    WeightsApplied,
    WeightsPublished,
    WeightsRefused,
    application_in,
)


@dataclass(slots=True)
class RolloutFacts:
    """One rollout's way through the log: unix times in seconds, None for stages that it has not reached.

    `tokens` are those that the policy sampled.
    """

    purpose: Purpose = "train"
    tokens: int = 0
    requested_s: float | None = None
    timings: RolloutTimings | None = None
    completed_s: float | None = None
    scored_s: float | None = None
    passed: float | None = None
    closed_s: float | None = None
    ready: bool = False
    stale_s: float | None = None
    planned_s: float | None = None
    batch: Ref | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """A requested group."""

    time_s: float
    samples: int
    purpose: Purpose
    evaluation: int | None = None


@dataclass(frozen=True, slots=True)
class Closing:
    """How a group ended: `reason` is `ready`, `evaluated` or why it was dropped."""

    group_id: str
    time_s: float
    reason: str
    members: int
    reward: float
    evaluation: int | None = None


class History:
    """The events of a run, reduced to what reports need."""

    def __init__(self) -> None:
        self.requests: dict[str, Request] = {}
        self.rollouts: dict[Ref, RolloutFacts] = {}
        self.closings: dict[Ref, Closing] = {}
        self.closed: set[str] = set()
        self.evaluations: dict[int, dict[str, tuple[Member, ...]]] = {}
        self.batches: dict[Ref, BatchPlanned] = {}
        self.steps: dict[int, StepCompleted] = {}
        self.published: dict[int, WeightsPublished] = {}
        self.applied: dict[tuple[str, int], WeightsApplied] = {}
        self.dead_letters: dict[Ref, str] = {}

    def add(self, event: Event, ref: Ref) -> None:
        """Add one event; `ref` is the place of its record."""
        match event:
            case GroupRequested():
                self.requests[event.group_id] = Request(event.time_s, event.samples, event.purpose, event.evaluation)
            case RolloutCompleted():
                facts = self._of(ref)
                facts.purpose, facts.tokens = event.purpose, event.sampled_tokens
                facts.requested_s, facts.timings, facts.completed_s = event.requested_s, event.timings, event.time_s
            case RolloutScored():
                self._scored(event)
            case GroupReady() | GroupDropped() | GroupEvaluated():
                self._closed(event, ref)
            case RolloutDisposed():
                facts = self._of(event.rollout)
                facts.closed_s = facts.closed_s or event.time_s
            case BatchPlanned():
                self.batches[ref] = event
                for sequence in event.sequences:
                    facts = self._of(sequence.rollout)
                    facts.planned_s, facts.batch = event.time_s, ref
            case StepCompleted():
                self.steps.setdefault(event.step, event)
            case WeightsPublished():
                self.published.setdefault(event.version, event)
            case WeightsApplied() | CanaryScored() | WeightsRefused():
                if (applied := application_in(event)) is not None:
                    self.applied.setdefault((applied.producer_id, applied.version), applied)
            case DeadLetter():
                self.dead_letters[ref] = f"{event.stage}: {event.error}"

    def evaluated(self, evaluation: int) -> tuple[float, int] | None:
        """Mean `passed` over the scored members of a held-back round, and how many they are; None: none is scored."""
        members = [member for group in self.evaluations.get(evaluation, {}).values() for member in group]
        passed = [member.passed for member in members if member.passed is not None]
        return (sum(passed) / len(passed), len(passed)) if passed else None

    def round_groups(self, evaluation: int) -> list[str]:
        """The ids of the groups that a held-back round requested."""
        return [group for group, request in self.requests.items() if request.evaluation == evaluation]

    def step_of(self, batch: Ref) -> StepCompleted | None:
        """The step that trained a batch, given the place of its record; None: it has not been trained."""
        planned = self.batches.get(batch)
        if planned is None:
            return None
        found = next((step for step in self._candidates(planned.batch) if step.batch_ref == batch), None)
        return found

    def _candidates(self, batch: int) -> list[StepCompleted]:
        # A batch and its step have neighbouring numbers; looking there first keeps this linear.
        near = [self.steps[n] for n in (batch, batch + 1) if n in self.steps]
        return near or list(self.steps.values())

    def _of(self, rollout: Ref) -> RolloutFacts:
        return self.rollouts.setdefault(rollout, RolloutFacts())

    def _scored(self, event: RolloutScored) -> None:
        facts = self._of(event.rollout)
        if facts.scored_s is None:
            facts.purpose, facts.tokens = event.purpose, event.generated_tokens
            facts.scored_s, facts.passed = event.time_s, event.passed
            facts.requested_s = event.requested_s or facts.requested_s

    def _closed(self, event: GroupReady | GroupDropped | GroupEvaluated, ref: Ref) -> None:
        evaluation = event.evaluation if isinstance(event, GroupEvaluated) else None
        match event:
            case GroupReady():
                reason = "ready"
            case GroupDropped():
                reason = event.reason
            case GroupEvaluated():
                reason = "evaluated"
                self.evaluations.setdefault(event.evaluation, {}).setdefault(event.group_id, event.members)
        self.closings[ref] = Closing(
            event.group_id, event.time_s, reason, len(event.members), event.reward_mean, evaluation
        )
        self.closed.add(event.group_id)
        for member in event.members:
            facts = self._of(member.rollout)
            if ref.topic == "batches":
                facts.stale_s = event.time_s
            else:
                facts.closed_s = event.time_s
                facts.ready = isinstance(event, GroupReady) and member.disposition is None
