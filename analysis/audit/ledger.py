"""Every rollout's disposition, proved from the raw topics: produced = Σ dispositions + in flight.

    ledger = Ledger()
    for topic in READING_ORDER:
        for record in read_topic(bootstrap, run, topic):
            ledger.add(record.ref, record.value, record.time_s)
    audit = ledger.close()

A rollout is one record of `rollouts`, named by its reference: two attempts of one rollout id are two rollouts. Its
disposition is `trained` where a step completed the batch that lists it and did not reject it; every other disposition
is written by the stage that decided it. A dead letter counts only where nothing else disposed of the rollout, since it
can be replayed. So does the `expired` of a single rollout, which the aggregator writes about a group that it has
forgotten. Pure: records go in, in any order (except that the dead letter of a batch that the learner passed over comes
before that batch), and an `Audit` comes out. Memory: about 70 bytes a rollout (`analysis.audit.facts`).
"""

from collections.abc import Mapping
from typing import Final

from analysis.audit.excused import DeadEnds
from analysis.audit.facts import LATE, PRODUCED, READY, Fact, Slot, Tally, Window
from analysis.audit.judge import Finished, Judgement, place_of
from analysis.audit.names import dead_rollouts, rollout_name
from analysis.audit.result import Audit, Finding
from schemas import (
    TOPICS,
    BatchPlanned,
    DeadLetter,
    DeadLetterPurged,
    DeadLetterReplayed,
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
"""Effects before causes: even while the run is active, what a record refers to is on the log when its topic is read."""


class Ledger:
    """Collects what the log records of each rollout. `add` takes any record of any topic, decodable or not.

    `window` limits the rollouts that are judged; records about others are ignored.
    """

    def __init__(self, window: Window | None = None) -> None:
        self._tally = Tally(window or Window({}))
        self._steps: dict[int, StepCompleted] = {}
        self._step_conflicts: list[Finding] = []
        self._dead_ends = DeadEnds()
        self._passed_over: set[Ref] = set()
        self._newest_s = 0.0

    def add(self, ref: Ref, value: bytes | memoryview, time_s: float = 0.0) -> None:
        """Add one record: its place, its bytes, and the broker's timestamp (unix seconds)."""
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

    def close(
        self,
        finished: Finished | None = None,
        log_start: Mapping[int, int] | None = None,
        trained: tuple[int, list[Finding]] | None = None,
    ) -> Audit:
        """The audit of what was added.

        `finished(stage, ref)` tells whether a stage has committed a record as finished: with it, a rollout that a stage
        committed and wrote nothing about is unaccounted; without it, such a rollout counts as in flight. `log_start`
        holds the first offset that retention left of each partition of `rollouts` (0 where absent); older rollouts are
        not judged. `trained` is the judgement of the steps' digests (`analysis.audit.trained`), where there is one.
        """
        verified, altered = trained or (0, [])
        dead_ends = self._dead_ends.judge(finished)
        judgement = Judgement(self._tally, self._steps, self._newest_s, finished, log_start or {}, dead_ends)
        return judgement.audit([*self._step_conflicts, *altered], verified)

    def _add_rollout(self, ref: Ref, value: bytes | memoryview, time_s: float) -> None:
        slot = self._tally.slot(ref)
        if slot is None:
            return
        columns, index = slot
        columns.facts[index] |= PRODUCED
        columns.since_s[index] = time_s
        # Scores, which are read first, name nearly every rollout, so that few large bodies are decoded.
        if not columns.is_named(index) and (name := rollout_name(value)) is not None:
            columns.name(index, name)

    def _add_event(self, ref: Ref, event: Event) -> None:
        match event:
            case RolloutScored():
                self._note("scored", event.rollout, event.rollout_id, ref)
            case GroupReady() | GroupDropped() | GroupEvaluated():
                self._add_group(ref, event)
            case RolloutDisposed():
                self._dispose(ref, event)
            case BatchPlanned() if ref not in self._passed_over:
                for sequence in event.sequences:
                    self._note("planned", sequence.rollout, sequence.rollout_id, ref)
            case StepCompleted():
                self._add_step(ref, event)
            case DeadLetter() | DeadLetterReplayed() | DeadLetterPurged():
                if event.stage == "learner" and event.source.topic == "batches":
                    self._passed_over.add(Ref(*event.source))
                rollouts = dead_rollouts(event)
                self._dead_ends.add(event, rollouts)
                for rollout in rollouts:
                    if slot := self._tally.slot(rollout):
                        slot.columns.end(slot.row, "dead_letter")
            case _:
                pass

    def _dispose(self, ref: Ref, event: RolloutDisposed) -> None:
        if event.disposition == "expired":
            if slot := self._tally.slot(event.rollout):
                slot.columns.facts[slot.row] |= LATE
                slot.columns.name(slot.row, event.rollout_id)
        elif slot := self._note("closed", event.rollout, event.rollout_id, ref):
            slot.columns.end(slot.row, event.disposition)

    def _add_group(self, ref: Ref, event: GroupReady | GroupDropped | GroupEvaluated) -> None:
        own: Disposition | None = None
        if not isinstance(event, GroupReady):
            own = event.reason if isinstance(event, GroupDropped) else "evaluated"
        for member in event.members:
            # A group that the batcher drops was closed on `groups` before: this record does not close it again.
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
            batches = f"{place_of(first.batch_ref)} and {place_of(step.batch_ref)}"
            what = f"step {step.step} is recorded twice, for {batches}"
            self._step_conflicts.append(Finding(f"step {step.step}", ref, what, "duplicated"))
        elif step.trained_digest != first.trained_digest and None not in (step.trained_digest, first.trained_digest):
            what = f"is recorded again with {step.trained_digest} trained on, after {first.trained_digest}"
            self._step_conflicts.append(Finding(f"step {step.step}", ref, what, "altered"))

    def _note(self, fact: Fact, rollout: Ref, rollout_id: str, ref: Ref) -> Slot | None:
        slot = self._tally.slot(rollout)
        if slot is not None:
            slot.columns.note(fact, slot.row, ref)
            slot.columns.name(slot.row, rollout_id)
        return slot
