"""Every rollout's end, proved from the raw topics: produced = Σ dispositions + in flight (DESIGN section 2).

    ledger = Ledger()
    for topic in READING_ORDER:
        for record in read_topic(bootstrap, run, topic):
            ledger.add(record.ref, record.value)
    audit = ledger.close()

A rollout is one record of `rollouts`, named by its reference: two attempts of one rollout id are two rollouts. It ends
as `trained` where a step completed the batch that lists it and did not reject it; every other end is written down by
the stage that decided it. Pure: records go in, in any order, and a verdict comes out.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from typing import Final, get_args

import msgspec

from schemas import (
    BatchPlanned,
    DeadLetter,
    Disposition,
    Event,
    GroupDropped,
    GroupEvaluated,
    GroupReady,
    Member,
    Ref,
    RolloutCompleted,
    RolloutDisposed,
    RolloutScored,
    StepCompleted,
    UndecodableError,
    decode,
)

READING_ORDER: Final = ("steps", "dead-letters", "batches", "groups", "scores", "rollouts")
"""Effects before causes: in a run that is still going, whatever a record refers to was written before it was read."""

DISPOSITIONS: Final[tuple[Disposition, ...]] = get_args(Disposition)

WAITS: Final = ("to be scored", "for its group", "for a batch", "for its step")


class Finding(msgspec.Struct, frozen=True):
    """One thing that must not be: the rollout it is about, and what the log says of it."""

    rollout: str
    ref: Ref
    what: str


class Audit(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict. `unaccounted` counts the rollouts (and references to none) in `findings`."""

    produced: int
    dispositions: dict[str, int]
    in_flight: int
    unaccounted: int
    trained_twice: int
    in_flight_waiting: dict[str, int]
    findings: list[Finding]
    trained_twice_ids: list[str]

    @property
    def clean(self) -> bool:
        return self.unaccounted == 0 and self.trained_twice == 0


class Ledger:
    """Collects what the log says of each rollout. `add` takes any record of any topic, also one that is no event."""

    def __init__(self) -> None:
        self._produced: dict[Ref, RolloutName | None] = {}
        self._scored: dict[Ref, list[Ref]] = defaultdict(list)
        self._ends: dict[Ref, list[tuple[str, Ref]]] = defaultdict(list)
        self._ready: dict[Ref, list[Ref]] = defaultdict(list)
        self._batches: dict[Ref, BatchPlanned] = {}
        self._planned: dict[Ref, list[Ref]] = defaultdict(list)
        self._steps: dict[int, StepCompleted] = {}
        self._names: dict[Ref, str] = {}
        self._contradictions: list[Finding] = []

    def add(self, ref: Ref, value: bytes | memoryview) -> None:
        """One record as it is on the log."""
        try:
            event: Event | None = decode(value)
        except UndecodableError:
            event = None
        if ref.topic == "rollouts":
            name = RolloutName(event.rollout_id, event.group_id) if isinstance(event, RolloutCompleted) else None
            self._produced[ref] = name
        elif event is not None:
            self._add_event(ref, event)

    def close(
        self, finished: Callable[[str, Ref], bool] | None = None, log_start: Mapping[int, int] | None = None
    ) -> Audit:
        """The verdict on what was added.

        `finished(stage, ref)` says whether a stage has committed a record as done: with it, a rollout that a stage
        took and wrote nothing about is unaccounted; without it, it is taken to be in flight. `log_start` holds the
        first offset that retention left of each partition of `rollouts` (0 where absent); older ones are not judged.
        """
        findings = list(self._contradictions)
        trained = self._trained()
        dispositions: Counter[str] = Counter()
        waiting: Counter[str] = Counter()
        for ref in self._produced:
            ends = self._ends_of(ref, trained)
            if wrong := self._contradiction(ref, ends) or (None if ends else self._lost(ref, finished)):
                findings.append(self._finding(ref, wrong))
            elif ends:
                dispositions[ends[0]] += 1
            else:
                waiting[self._waits(ref)] += 1
        foreign = {*self._scored, *self._ends, *self._ready, *self._planned} - self._produced.keys()
        findings += [
            self._finding(ref, "is named by later records and is not on the log")
            for ref in sorted(foreign)
            if ref.topic != "rollouts" or ref.offset >= (log_start or {}).get(ref.partition, 0)
        ]
        twice = self._trained_twice(trained)
        return Audit(
            produced=len(self._produced),
            dispositions={name: dispositions[name] for name in DISPOSITIONS},
            in_flight=waiting.total(),
            unaccounted=len({finding.ref for finding in findings}),
            trained_twice=len(twice),
            in_flight_waiting={name: waiting[name] for name in WAITS},
            findings=findings,
            trained_twice_ids=twice,
        )

    def _add_event(self, ref: Ref, event: Event) -> None:
        match event:
            case RolloutScored():
                self._scored[event.rollout].append(ref)
                self._names.setdefault(event.rollout, event.rollout_id)
            case GroupReady():
                for member in event.members:
                    if member.disposition is None:
                        self._ready[self._named(member)].append(ref)
                    else:
                        self._ends[self._named(member)].append((member.disposition, ref))
            case GroupDropped() | GroupEvaluated():
                reason = event.reason if isinstance(event, GroupDropped) else "evaluated"
                for member in event.members:
                    self._ends[self._named(member)].append((member.disposition or reason, ref))
            case RolloutDisposed():
                self._names.setdefault(event.rollout, event.rollout_id)
                self._ends[event.rollout].append((event.disposition, ref))
            case BatchPlanned():
                self._batches[ref] = event
                for sequence in event.sequences:
                    self._names.setdefault(sequence.rollout, sequence.rollout_id)
                    self._planned[sequence.rollout].append(ref)
            case StepCompleted():
                self._add_step(ref, event)
            case DeadLetter():
                for rollout in _dead_rollouts(event):
                    self._ends[rollout].append(("dead_letter", ref))
            case _:
                pass

    def _add_step(self, ref: Ref, step: StepCompleted) -> None:
        first = self._steps.setdefault(step.step, step)
        if first.batch_ref != step.batch_ref:
            what = f"step {step.step} is told twice, of {_place(first.batch_ref)} and of {_place(step.batch_ref)}"
            self._contradictions.append(Finding(f"step {step.step}", ref, what))

    def _named(self, member: Member) -> Ref:
        self._names.setdefault(member.rollout, member.rollout_id)
        return member.rollout

    def _trained(self) -> dict[Ref, list[tuple[int, bool]]]:
        """Rollout → the steps that took it, and whether the step rejected it."""
        trained: dict[Ref, list[tuple[int, bool]]] = defaultdict(list)
        for step in self._steps.values():
            batch = self._batches.get(step.batch_ref)
            rejected = {refusal.rollout for refusal in step.rejected}
            for sequence in batch.sequences if batch is not None else ():
                trained[sequence.rollout].append((step.step, sequence.rollout in rejected))
        return trained

    def _ends_of(self, ref: Ref, trained: dict[Ref, list[tuple[int, bool]]]) -> list[str]:
        """The different ends the log gives it, those of its steps first."""
        ends = ["invalid" if rejected else "trained" for _, rejected in trained.get(ref, ())]
        return list(dict.fromkeys(ends + [end for end, _ in self._ends.get(ref, ())]))

    def _contradiction(self, ref: Ref, ends: list[str]) -> str | None:
        if len(ends) > 1:
            return f"ends as {' and as '.join(ends)}"
        closings = [place for _, place in self._ends.get(ref, ()) if place.topic == "groups"] + self._ready.get(ref, [])
        if len(closings) > 1:
            return f"is ended {len(closings)} times, at {' and '.join(_place(place) for place in closings)}"
        plans = self._planned.get(ref, [])
        if len(plans) > 1:
            return f"is planned {len(plans)} times, at {' and '.join(_place(place) for place in plans)}"
        if plans and not self._ready.get(ref):
            return f"is planned at {_place(plans[0])} and no group was ready with it"
        return None

    def _lost(self, ref: Ref, finished: Callable[[str, Ref], bool] | None) -> str | None:
        """A rollout without an end that the stage it should wait for has already committed."""
        if finished is None or self._planned.get(ref):
            return None
        if ready := self._ready.get(ref):
            lost = finished("batches", ready[0])
            return f"was ready at {_place(ready[0])}, which batches finished without a word" if lost else None
        scores = self._scored.get(ref, [])
        if scores and all(finished("groups", score) for score in scores):
            return f"was scored at {_place(scores[0])}, which groups finished without a word"
        return "was finished by rewards without a score" if not scores and finished("rewards", ref) else None

    def _waits(self, ref: Ref) -> str:
        if self._planned.get(ref):
            return "for its step"
        if self._ready.get(ref):
            return "for a batch"
        return "for its group" if self._scored.get(ref) else "to be scored"

    def _trained_twice(self, trained: dict[Ref, list[tuple[int, bool]]]) -> list[str]:
        """Rollout ids that the gradient saw more than once, be it one record twice or two attempts once each."""
        times: Counter[str] = Counter()
        for ref, steps in trained.items():
            times[self._name(ref)] += sum(not rejected for _, rejected in steps)
        return sorted(name for name, count in times.items() if count > 1)

    def _name(self, ref: Ref) -> str:
        produced = self._produced.get(ref)
        return produced.rollout_id if produced is not None else self._names.get(ref, _place(ref))

    def _finding(self, ref: Ref, what: str) -> Finding:
        return Finding(self._name(ref), ref, what)


class RolloutName(msgspec.Struct, frozen=True):
    """What a rollout is called."""

    rollout_id: str
    group_id: str


def _dead_rollouts(letter: DeadLetter) -> list[Ref]:
    """The rollouts that end with a dead letter: the record itself, or those of a score, group or batch that it was."""
    if letter.source.topic == "rollouts":
        return [letter.source]
    try:
        event = decode(letter.data)
    except UndecodableError:
        return []
    match event:
        case RolloutScored():
            return [event.rollout]
        case GroupReady():
            return [member.rollout for member in event.members if member.disposition is None]
        case BatchPlanned():
            return [sequence.rollout for sequence in event.sequences]
        case _:
            return []


def _place(ref: Ref) -> str:
    return f"{ref.topic}/{ref.partition}/{ref.offset}"
