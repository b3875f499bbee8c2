"""The judgement: one pass over the tally, which finds each rollout's one disposition, or what is wrong with it."""

import heapq
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping

import numpy as np

from analysis.audit.excused import StandingEnds
from analysis.audit.facts import DISPOSITIONS, LATE, PRODUCED, READY, Columns, Tally
from analysis.audit.result import MAX_LISTED, OLDEST_LISTED, WAITS, Audit, Finding, Kind, Waiting
from schemas import Ref, StepCompleted

Finished = Callable[[str, Ref], bool]
"""(stage, record) → whether the stage has committed the record as finished."""


class Judgement:
    """One pass over the tally; `audit` may be called once.

    `steps` by number, `newest_s` the time of the newest record (unix seconds), `finished` None where the stages'
    progress is not known, `log_start` the first offset that retention left of each partition of `rollouts`.
    """

    def __init__(
        self,
        tally: Tally,
        steps: Mapping[int, StepCompleted],
        newest_s: float,
        finished: Finished | None,
        log_start: Mapping[int, int],
        dead_ends: StandingEnds,
    ) -> None:
        self._tally = tally
        self._newest_s = newest_s
        self._finished = finished
        self._log_start = log_start
        self._dead_ends = dead_ends
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

    def audit(self, step_findings: list[Finding], steps_verified: int = 0) -> Audit:
        """The result, with the findings about steps among its own."""
        produced = 0
        for columns, index in self._tally:
            if columns.facts[index] & PRODUCED:
                produced += 1
                self._judge(columns, index)
            elif columns.first + index >= self._log_start.get(columns.partition, 0):
                self._find(columns, index, "is named by later records but is not on the log", "unaccounted")
                self._count_trained(columns, index)
        for ref in sorted(self._tally.absurd):
            self._add_finding(Finding(place_of(ref), ref, "is named by later records but is not on the log"))
        for finding in step_findings:
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
            altered=self._kinds["altered"],
            steps_verified=steps_verified,
        )

    def _judge(self, columns: Columns, index: int) -> None:
        ends: list[str] = list(dict.fromkeys(self._count_trained(columns, index)))
        ends += [end for end in columns.ends_of(index) if end not in ends]
        if "dead_letter" in ends and (len(ends) > 1 or self._dead_ends.is_over(columns.ref(index))):
            ends.remove("dead_letter")
        if ends in ([], ["dead_letter"]) and self._is_late(columns, index):
            ends = ["expired"]
        if wrong := self._contradiction(columns, index, ends):
            self._find(columns, index, wrong, "duplicated")
        elif ends:
            self._dispositions[ends[0]] += 1
        elif wrong := self._lost(columns, index):
            if self._dead_ends.excuses(columns.name_bytes(index)):
                self._dispositions["dead_letter"] += 1
            else:
                self._find(columns, index, wrong, "unaccounted")
        else:
            self._wait(columns, index)

    def _is_late(self, columns: Columns, index: int) -> bool:
        """Whether the aggregator refused it because its group was forgotten, and no group has it."""
        places = columns.places
        return bool(columns.facts[index] & LATE) and places["closed"][index] < 0 and places["planned"][index] < 0

    def _count_trained(self, columns: Columns, index: int) -> list[str]:
        """`_trained`; also notes one hash of its name per time that it was trained on.

        `_trained_twice` compares names only where hashes agree, so that it holds 8 bytes a rollout.
        """
        ends = self._trained(columns, index)
        for _ in range(ends.count("trained") if ends else 0):
            self._trained_hashes.append(hash(columns.name_bytes(index) or columns.ref(index)))
        return ends

    def _trained(self, columns: Columns, index: int) -> list[str]:
        """Its disposition by each step that trained its batch: `trained`, or `invalid` where the step rejected it."""
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
            return f"is ended {len(places)} times, at {' and '.join(map(place_of, places))}"
        if ("planned", index) in columns.more:
            places = columns.noted("planned", index)
            return f"is planned {len(places)} times, at {' and '.join(map(place_of, places))}"
        if columns.places["planned"][index] >= 0:
            place = place_of(columns.noted("planned", index)[0])
            if not columns.facts[index] & READY:
                return f"is planned at {place} but no group was ready with it"
            if columns.ends[index] and ends[:1] != ["dead_letter"] and ends[0] in columns.ends_of(index):
                return f"is planned at {place} and ends as {ends[0]}"
        return None

    def _lost(self, columns: Columns, index: int) -> str | None:
        """Why a rollout without a disposition is lost; None: it is in flight.

        It is lost when the stage that it should be waiting for has committed its record and written nothing.
        """
        finished = self._finished
        if finished is None or columns.places["planned"][index] >= 0:
            return None
        if columns.facts[index] & READY:
            place = columns.noted("closed", index)[0]
            lost = finished("batches", place)
            return f"was ready at {place_of(place)}, which batches finished without writing anything" if lost else None
        scores = columns.noted("scored", index)
        if scores and all(finished("groups", score) for score in scores):
            return f"was scored at {place_of(scores[0])}, which groups finished without writing anything"
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
            waiting = Waiting(name_of(columns, index), ref, waits, since_s, max(0.0, self._newest_s - since_s))
            push = heapq.heappush if len(self._oldest) < OLDEST_LISTED else heapq.heappushpop
            push(self._oldest, (-since_s, -ref.partition, -ref.offset, waiting))

    def _trained_twice(self) -> list[str]:
        """Rollout ids that were trained on more than once: one record twice, or two attempts once each."""
        values, counts = np.unique(np.frombuffer(self._trained_hashes, dtype=np.int64), return_counts=True)
        suspects = {int(value) for value in values[counts > 1]}
        if not suspects:
            return []
        times: Counter[str] = Counter()
        for columns, index in self._tally:
            if hash(columns.name_bytes(index) or columns.ref(index)) in suspects:
                times[name_of(columns, index)] += self._trained(columns, index).count("trained")
        return sorted(name for name, count in times.items() if count > 1)

    def _find(self, columns: Columns, index: int, what: str, kind: Kind) -> None:
        self._add_finding(Finding(name_of(columns, index), columns.ref(index), what, kind))

    def _add_finding(self, finding: Finding) -> None:
        self._kinds[finding.kind] += 1
        if len(self._findings) < MAX_LISTED:
            self._findings.append(finding)


def name_of(columns: Columns, index: int) -> str:
    """Its rollout id; where that is not known, the place of its record."""
    return columns.name_bytes(index).decode() or place_of(columns.ref(index))


def place_of(ref: Ref) -> str:
    """`<topic>/<partition>/<offset>`."""
    return f"{ref.topic}/{ref.partition}/{ref.offset}"
