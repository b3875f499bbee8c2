"""The aggregator under the contract of its runner, in memory."""

import math
from dataclasses import dataclass, field
from typing import Any

from consumers.groups.aggregate import Aggregator
from consumers.groups.settings import GroupSettings
from schemas import (
    Event,
    GroupDropped,
    GroupEvaluated,
    GroupReady,
    GroupRequested,
    Ref,
    RolloutDisposed,
    RolloutScored,
    encode,
)
from streams.record import Output, Record
from streams.stages.processor import ProcessResult
from tests.builders import group_requested, record_at, rollout_scored


def score(
    group_id: str = "p.0", index: int = 0, attempt: int = 0, reward: float | None = 1.0, **fields: Any
) -> RolloutScored:
    """A score; reward None: no verdict. Each attempt is a rollout record of its own."""
    defaults: dict[str, Any] = {"samples": 2, "deadline_s": 100.0}
    return rollout_scored(
        group_id,
        index,
        attempt=attempt,
        rollout=Ref("rollouts", 0, hash_of(group_id, index, attempt)),
        valid=reward is not None,
        reward=reward or 0.0,
        **defaults | fields,
    )


def request(group_id: str = "p.0", *, requested_s: float = 0.0, **fields: Any) -> GroupRequested:
    """A request for two samples within 100 s."""
    defaults: dict[str, Any] = {"samples": 2, "deadline_s": requested_s + 100.0}
    return group_requested(group_id, time_s=requested_s, **defaults | fields)


def hash_of(group_id: str, index: int, attempt: int) -> int:
    return int.from_bytes(group_id.encode(), "big") % 1000 * 1000 + index * 10 + attempt


@dataclass
class Stage:
    """The runner's contract in memory: a crash keeps outputs and finished inputs and loses everything else."""

    settings: GroupSettings
    log: list[RolloutScored | GroupRequested] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    finished: set[int] = field(default_factory=set)
    written_s: dict[int, float] = field(default_factory=dict)
    now_s: float = 0.0

    def __post_init__(self) -> None:
        self.processor = Aggregator(self.settings)

    def deliver(self, event: RolloutScored | GroupRequested) -> ProcessResult:
        self.log.append(event)
        return self.process(len(self.log) - 1)

    def process(self, offset: int) -> ProcessResult:
        event = self.log[offset]
        topic = "scores" if isinstance(event, RolloutScored) else "prompts"
        record = Record(
            topic, 0, offset, event.group_id.encode(), encode(event), {}, self.written_s.get(offset, self.now_s)
        )
        self.written_s.setdefault(offset, self.now_s)
        return self.commit(self.processor.on_event(event, record, self.now_s))

    def scores(self) -> set[int]:
        return {offset for offset, event in enumerate(self.log) if isinstance(event, RolloutScored)}

    def commit(self, result: ProcessResult) -> ProcessResult:
        offsets = [ref.offset for ref in result.finished]
        assert len(set(offsets)) == len(offsets)
        assert self.finished.isdisjoint(offsets)
        self.finished.update(offsets)
        self.outputs.extend(result.outputs)
        return result

    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds
        due_s = self.processor.next_time_s()
        if due_s is not None and due_s <= self.now_s:
            self.commit(self.processor.on_time(self.now_s))

    def crash(self, known_since_s: float = -math.inf, *, offsets_lost: bool = False) -> None:
        """Recalls what it wrote from `known_since_s` on; the requests that are not finished come first."""
        self.processor = Aggregator(self.settings, known_since_s)
        for offset, output in enumerate(self.outputs):
            if output.event.time_s >= known_since_s:
                self.processor.on_own_output(output.event, record_at("groups", offset, time_s=self.now_s))
        if offsets_lost:  # the runner passes over the requests that are older than the tail
            self.finished = {
                offset
                for offset, event in enumerate(self.log)
                if isinstance(event, GroupRequested) and event.time_s < known_since_s
            }
        unfinished = [offset for offset in range(len(self.log)) if offset not in self.finished]
        for offset in sorted(unfinished, key=lambda offset: isinstance(self.log[offset], RolloutScored)):
            self.process(offset)

    @property
    def events(self) -> list[Event]:
        return [output.event for output in self.outputs]


def ends_of(events: list[Event]) -> list[tuple[Ref, str]]:
    """(rollout, end) for every end that the events state; a member to be trained on ends as `ready` here."""
    ends: list[tuple[Ref, str]] = []
    for event in events:
        match event:
            case GroupReady() | GroupDropped() | GroupEvaluated():
                ends += [(member.rollout, member.disposition or "ready") for member in event.members]
            case RolloutDisposed():
                ends.append((event.rollout, event.disposition))
            case _:
                raise AssertionError(event)
    return ends
