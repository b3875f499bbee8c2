"""Every rollout's end, proved from the raw topics: produced = Σ dispositions + in flight (DESIGN section 2).

    ledger = Ledger()
    for topic in READING_ORDER:
        for record in read_topic(bootstrap, run, topic):
            ledger.add(record.ref, record.value, record.time_s)
    audit = ledger.close()

A rollout is one record of `rollouts`, named by its reference: two attempts of one rollout id are two rollouts. It ends
as `trained` where a step completed the batch that lists it and did not reject it; every other end is written down by
the stage that decided it. A dead letter counts where nothing else ended the rollout, since it can be put back. Pure:
records go in, in any order, and a verdict comes out. Memory: about 70 bytes a rollout (`deploy.tally`).
"""

import heapq
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import Final, Literal

import msgspec
import numpy as np

from deploy.tally import DISPOSITIONS, PRODUCED, READY, Columns, Fact, Slot, Tally, Window
from schemas import (
    TOPICS,
    BatchPlanned,
    DeadLetter,
    Disposition,
    Event,
    GroupDropped,
    GroupEvaluated,
    GroupReady,
    Ref,
    RolloutDisposed,
    RolloutScored,
    StepCompleted,
    UndecodableError,
    decode,
)

READING_ORDER: Final = ("steps", "dead-letters", "batches", "groups", "scores", "rollouts")
"""Effects before causes: in a run that is still going, whatever a record refers to was written before it was read."""

WAITS: Final = ("to be scored", "for its group", "for a batch", "for its step")

MAX_LISTED: Final = 10_000
"""Findings and ids listed at most; the counts are exact."""

OLDEST_LISTED: Final = 100

Finished = Callable[[str, Ref], bool]


class Finding(msgspec.Struct, frozen=True):
    """One thing that must not be: the rollout it is about, and what the log says of it."""

    rollout: str
    ref: Ref
    what: str
    kind: Literal["unaccounted", "duplicated"] = "unaccounted"


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


class Ledger:
    """Collects what the log says of each rollout. `add` takes any record of any topic, also one that is no event.

    `window` limits the rollouts that are judged; records about others are passed over.
    """

    def __init__(self, window: Window | None = None) -> None:
        self._tally = Tally(window or Window({}))
        self._steps: dict[int, StepCompleted] = {}
        self._step_conflicts: list[Finding] = []
        self._dead_groups: set[bytes] = set()
        self._newest_s = 0.0

    def add(self, ref: Ref, value: bytes | memoryview, time_s: float = 0.0) -> None:
        """One record as it is on the log, and the broker's time of it."""
        if time_s > self._newest_s:
            self._newest_s = time_s
        if ref.topic == "rollouts":
            self._add_rollout(ref, value, time_s)
            return
        try:
            event = decode(value)
        except UndecodableError:
            return
        if isinstance(event, TOPICS[ref.topic].events):
            self._add_event(ref, event)

    def close(self, finished: Finished | None = None, log_start: Mapping[int, int] | None = None) -> Audit:
        """The verdict on what was added.

        `finished(stage, ref)` says whether a stage has committed a record as done: with it, a rollout that a stage
        took and wrote nothing about is unaccounted; without it, it is taken to be in flight. `log_start` holds the
        first offset that retention left of each partition of `rollouts` (0 where absent); older ones are not judged.
        """
        closing = _Closing(self._tally, self._steps, self._newest_s, finished, log_start or {}, self._dead_groups)
        return closing.verdict(self._step_conflicts)

    def _add_rollout(self, ref: Ref, value: bytes | memoryview, time_s: float) -> None:
        slot = self._tally.slot(ref)
        if slot is None:
            return
        columns, index = slot
        columns.facts[index] |= PRODUCED
        columns.since_s[index] = time_s
        # A score has told the name of nearly every rollout, so their bodies are not looked at.
        if not columns.is_named(index) and (name := rollout_name(value)) is not None:
            columns.name(index, name)

    def _add_event(self, ref: Ref, event: Event) -> None:
        match event:
            case RolloutScored():
                self._note("scored", event.rollout, event.rollout_id, ref)
            case GroupReady() | GroupDropped() | GroupEvaluated():
                self._add_group(ref, event)
            case RolloutDisposed():
                if slot := self._note("closed", event.rollout, event.rollout_id, ref):
                    slot.columns.end(slot.row, event.disposition)
            case BatchPlanned():
                for sequence in event.sequences:
                    self._note("planned", sequence.rollout, sequence.rollout_id, ref)
            case StepCompleted():
                self._add_step(ref, event)
            case DeadLetter():
                if event.source.topic in ("scores", "groups") and event.key is not None:
                    self._dead_groups.add(event.key)
                for rollout in dead_rollouts(event):
                    if slot := self._tally.slot(rollout):
                        slot.columns.end(slot.row, "dead_letter")
            case _:
                pass

    def _add_group(self, ref: Ref, event: GroupReady | GroupDropped | GroupEvaluated) -> None:
        own: Disposition | None = None
        if not isinstance(event, GroupReady):
            own = event.reason if isinstance(event, GroupDropped) else "evaluated"
        for member in event.members:
            # What the batcher drops was closed on `groups` before, and its end does not close it again.
            slot = (
                self._note("closed", member.rollout, member.rollout_id, ref)
                if ref.topic == "groups"
                else self._tally.slot(member.rollout)
            )
            if slot is None:
                continue
            if (end := member.disposition or own) is not None:
                slot.columns.end(slot.row, end)
            else:
                slot.columns.facts[slot.row] |= READY

    def _add_step(self, ref: Ref, step: StepCompleted) -> None:
        first = self._steps.setdefault(step.step, step)
        if first.batch_ref != step.batch_ref:
            what = f"step {step.step} is told twice, of {_place(first.batch_ref)} and of {_place(step.batch_ref)}"
            self._step_conflicts.append(Finding(f"step {step.step}", ref, what, "duplicated"))

    def _note(self, fact: Fact, rollout: Ref, rollout_id: str, ref: Ref) -> Slot | None:
        slot = self._tally.slot(rollout)
        if slot is not None:
            slot.columns.note(fact, slot.row, ref)
            slot.columns.name(slot.row, rollout_id)
        return slot


class _Closing:
    """One pass over the tally."""

    def __init__(
        self,
        tally: Tally,
        steps: Mapping[int, StepCompleted],
        newest_s: float,
        finished: Finished | None,
        log_start: Mapping[int, int],
        dead_groups: AbstractSet[bytes],
    ) -> None:
        self._tally = tally
        self._newest_s = newest_s
        self._finished = finished
        self._log_start = log_start
        self._dead_groups = dead_groups
        self._steps_of: dict[Ref, list[int]] = defaultdict(list)
        self._rejected: dict[Ref, set[int]] = defaultdict(set)
        for step in steps.values():
            self._steps_of[Ref(*step.batch_ref)].append(step.step)
            for refusal in step.rejected:
                self._rejected[Ref(*refusal.rollout)].add(step.step)
        self._dispositions: Counter[str] = Counter()
        self._waiting: Counter[str] = Counter()
        self._oldest: list[tuple[float, int, int, Waiting]] = []
        self._kinds: Counter[str] = Counter()
        self._findings: list[Finding] = []
        self._trained_hashes = array("q")

    def verdict(self, step_conflicts: list[Finding]) -> Audit:
        produced = 0
        for columns, index in self._tally:
            if columns.facts[index] & PRODUCED:
                produced += 1
                self._judge(columns, index)
            elif columns.first + index >= self._log_start.get(columns.partition, 0):
                self._find(columns, index, "is named by later records and is not on the log", "unaccounted")
                self._count_trained(columns, index)
        for ref in sorted(self._tally.absurd):
            self._add_finding(Finding(_place(ref), ref, "is named by later records and is not on the log"))
        for finding in step_conflicts:
            self._add_finding(finding)
        twice = self._trained_twice()
        return Audit(
            produced=produced,
            dispositions={name: self._dispositions[name] for name in DISPOSITIONS},
            in_flight=self._waiting.total(),
            unaccounted=self._kinds["unaccounted"],
            duplicated=self._kinds["duplicated"],
            trained_twice=len(twice),
            in_flight_waiting={name: self._waiting[name] for name in WAITS},
            in_flight_oldest=[entry[-1] for entry in sorted(self._oldest, reverse=True)],
            findings=self._findings,
            trained_twice_ids=twice[:MAX_LISTED],
        )

    def _judge(self, columns: Columns, index: int) -> None:
        ends: list[str] = list(dict.fromkeys(self._count_trained(columns, index)))
        ends += [end for end in columns.ends_of(index) if end not in ends]
        if len(ends) > 1 and "dead_letter" in ends:
            ends.remove("dead_letter")
        if wrong := self._contradiction(columns, index, ends):
            self._find(columns, index, wrong, "duplicated")
        elif ends:
            self._dispositions[ends[0]] += 1
        elif wrong := self._lost(columns, index):
            # Of a score or group that cannot be read only the key is known, its group: that is what the rollout lacks.
            if columns.name_bytes(index).rpartition(b".")[0] in self._dead_groups:
                self._dispositions["dead_letter"] += 1
            else:
                self._find(columns, index, wrong, "unaccounted")
        else:
            self._wait(columns, index)

    def _count_trained(self, columns: Columns, index: int) -> list[str]:
        """`_trained`, and a number for each time the gradient saw it: names are compared only where numbers agree."""
        ends = self._trained(columns, index)
        for _ in range(ends.count("trained") if ends else 0):
            self._trained_hashes.append(hash(columns.name_bytes(index) or columns.ref(index)))
        return ends

    def _trained(self, columns: Columns, index: int) -> list[str]:
        """What each step that took it made of it: `trained`, or `invalid` where it was rejected."""
        if columns.places["planned"][index] < 0:
            return []
        steps = [step for plan in columns.noted("planned", index) for step in self._steps_of.get(plan, ())]
        if not steps:
            return []
        rejected = self._rejected.get(columns.ref(index), ()) if self._rejected else ()
        return ["invalid" if step in rejected else "trained" for step in steps]

    def _contradiction(self, columns: Columns, index: int, ends: list[str]) -> str | None:
        if len(ends) > 1:
            return f"ends as {' and as '.join(ends)}"
        if ("closed", index) in columns.more:
            places = columns.noted("closed", index)
            return f"is ended {len(places)} times, at {' and '.join(map(_place, places))}"
        if ("planned", index) in columns.more:
            places = columns.noted("planned", index)
            return f"is planned {len(places)} times, at {' and '.join(map(_place, places))}"
        if columns.places["planned"][index] >= 0:
            place = _place(columns.noted("planned", index)[0])
            if not columns.facts[index] & READY:
                return f"is planned at {place} and no group was ready with it"
            if columns.ends[index] and ends[:1] != ["dead_letter"] and ends[0] in columns.ends_of(index):
                return f"is planned at {place} and ends as {ends[0]}"
        return None

    def _lost(self, columns: Columns, index: int) -> str | None:
        """A rollout without an end that the stage it should wait for has already committed."""
        finished = self._finished
        if finished is None or columns.places["planned"][index] >= 0:
            return None
        if columns.facts[index] & READY:
            place = columns.noted("closed", index)[0]
            lost = finished("batches", place)
            return f"was ready at {_place(place)}, which batches finished without a word" if lost else None
        scores = columns.noted("scored", index)
        if scores and all(finished("groups", score) for score in scores):
            return f"was scored at {_place(scores[0])}, which groups finished without a word"
        if not scores and finished("rewards", columns.ref(index)):
            return "was finished by rewards without a score"
        return None

    def _wait(self, columns: Columns, index: int) -> None:
        if columns.places["planned"][index] >= 0:
            waits = "for its step"
        elif columns.facts[index] & READY:
            waits = "for a batch"
        else:
            waits = "for its group" if columns.places["scored"][index] >= 0 else "to be scored"
        self._waiting[waits] += 1
        since_s = columns.since_s[index]
        if len(self._oldest) < OLDEST_LISTED or -since_s > self._oldest[0][0]:
            ref = columns.ref(index)
            waiting = Waiting(_name(columns, index), ref, waits, since_s, max(0.0, self._newest_s - since_s))
            push = heapq.heappush if len(self._oldest) < OLDEST_LISTED else heapq.heappushpop
            push(self._oldest, (-since_s, -ref.partition, -ref.offset, waiting))

    def _trained_twice(self) -> list[str]:
        """Rollout ids that the gradient saw more than once, be it one record twice or two attempts once each."""
        values, counts = np.unique(np.frombuffer(self._trained_hashes, dtype=np.int64), return_counts=True)
        suspects = {int(value) for value in values[counts > 1]}
        if not suspects:
            return []
        times: Counter[str] = Counter()
        for columns, index in self._tally:
            if hash(columns.name_bytes(index) or columns.ref(index)) in suspects:
                times[_name(columns, index)] += self._trained(columns, index).count("trained")
        return sorted(name for name, count in times.items() if count > 1)

    def _find(self, columns: Columns, index: int, what: str, kind: Literal["unaccounted", "duplicated"]) -> None:
        self._add_finding(Finding(_name(columns, index), columns.ref(index), what, kind))

    def _add_finding(self, finding: Finding) -> None:
        self._kinds[finding.kind] += 1
        if len(self._findings) < MAX_LISTED:
            self._findings.append(finding)


class _RolloutName(msgspec.Struct, frozen=True, tag_field="type", tag="RolloutCompleted"):
    """The one field of a RolloutCompleted that is needed here; the others are passed over undecoded."""

    rollout_id: str


_name_decoder: Final = msgspec.msgpack.Decoder(_RolloutName)


def rollout_name(value: bytes | memoryview) -> str | None:
    """The rollout id in a record of `rollouts`; None where it is none."""
    try:
        return _name_decoder.decode(value).rollout_id
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None


def dead_rollouts(letter: DeadLetter) -> list[Ref]:
    """The rollouts that end with a dead letter: the record itself, or those of a score, group or batch that it was.

    The learner's letters end nothing: what it refuses is in its step's `rejected`. A purged letter says what it ended.
    """
    if letter.stage == "learner":
        return []
    if letter.purged:
        return list(letter.ends)
    if letter.source.topic == "rollouts":
        return [letter.source]
    try:
        event = decode(letter.data)
    except UndecodableError:
        return []
    match event:
        case RolloutScored() if letter.source.topic == "scores":
            return [event.rollout]
        case GroupReady() if letter.source.topic == "groups":
            return [member.rollout for member in event.members if member.disposition is None]
        case BatchPlanned() if letter.source.topic == "batches":
            return [sequence.rollout for sequence in event.sequences]
        case _:
            return []


def _name(columns: Columns, index: int) -> str:
    return columns.name_bytes(index).decode() or _place(columns.ref(index))


def _place(ref: Ref) -> str:
    return f"{ref.topic}/{ref.partition}/{ref.offset}"
