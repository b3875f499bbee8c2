"""The aggregator: collects the scores of a group and ends every rollout exactly once. No I/O and no clock of its own.

    scores ──▶ open group ──▶ GroupReady | GroupDropped | GroupEvaluated    complete, or its deadline has passed
       ├─────▶ (nothing)                                                    the same rollout record scored again
       └─────▶ RolloutDisposed(duplicate)                                   a later attempt, or a straggler

A score is finished when its rollout has its end on the log, so that after a crash the unfinished ones rebuild the open
groups and `on_recalled` rebuilds the memory of the closed ones.
"""

import heapq
from dataclasses import dataclass, field
from datetime import UTC, datetime

from consumers.groups.memory import Memory
from consumers.groups.settings import GroupSettings
from consumers.groups.verdict import close_group
from schemas import Event, GroupDropped, GroupEvaluated, GroupReady, RolloutDisposed, RolloutScored
from streams.errors import Poison
from streams.fold import Turn
from streams.record import Output, Record


@dataclass
class _Open:
    """Members by rollout id, in the order in which their first scored attempts came."""

    samples: int
    opened_s: float
    closes_s: float
    members: dict[str, tuple[RolloutScored, Record]] = field(default_factory=dict)


class Aggregator:
    """A `streams.fold.Fold` over the scores of one partition."""

    def __init__(self, settings: GroupSettings) -> None:
        self._settings = settings
        self._open: dict[str, _Open] = {}
        self._closings: list[tuple[float, str]] = []
        self._memory = Memory(settings.remember_s)

    def on_event(self, event: Event, record: Record, now_s: float) -> Turn:
        """Takes one score. Raises Poison for another event and for a member that its group did not ask for."""
        if not isinstance(event, RolloutScored):
            raise Poison(f"{type(event).__name__} is not RolloutScored")
        if not 0 <= event.index < event.samples:
            raise Poison(f"rollout {event.rollout_id} has index {event.index} in a group of {event.samples} samples")
        self._memory.forget(now_s)
        if self._memory.ended(event.group_id, event.rollout):
            return Turn(finished=(record.ref,))
        if self._memory.closed(event.group_id):
            return self._duplicate(event, record, now_s)
        group = self._open.get(event.group_id)
        known = group.members.get(event.rollout_id) if group else None
        if known is not None:
            return (
                Turn(finished=(record.ref,))
                if known[0].rollout == event.rollout
                else self._duplicate(event, record, now_s)
            )
        if group is None:
            group = self._opened(event, now_s)
        group.members[event.rollout_id] = (event, record)
        return self._close(event.group_id, now_s) if len(group.members) == group.samples else Turn()

    def on_observed(self, event: Event, record: Record, now_s: float) -> Turn:
        """No side topics: nothing to do."""
        return Turn()

    def on_recalled(self, event: Event, record: Record) -> None:
        """Remembers what this stage wrote before it was restarted."""
        match event:
            case GroupReady() | GroupDropped() | GroupEvaluated():
                rollouts = tuple(member.rollout for member in event.members)
                self._memory.remember(event.group_id, rollouts, event.time_s, closed=True)
            case RolloutDisposed():
                self._memory.remember(event.group_id, (event.rollout,), event.time_s, closed=False)
            case _:
                pass

    def on_time(self, now_s: float) -> Turn:
        """Closes the groups whose deadline has passed with the members they have."""
        turns = []
        while (due_s := self.next_time_s()) is not None and due_s <= now_s:
            _, group_id = heapq.heappop(self._closings)
            turns.append(self._close(group_id, now_s))
        self._memory.forget(now_s)
        return Turn(
            outputs=tuple(output for turn in turns for output in turn.outputs),
            finished=tuple(ref for turn in turns for ref in turn.finished),
        )

    def next_time_s(self) -> float | None:
        """When the next open group is to be closed, unix seconds."""
        while self._closings and not self._is_open(*self._closings[0]):
            heapq.heappop(self._closings)
        return self._closings[0][0] if self._closings else None

    def waiting(self) -> list[str]:
        """The open groups in one sentence, the one that closes next by name."""
        closes_s = self.next_time_s()
        if closes_s is None:
            return []
        group_id = self._closings[0][1]
        group = self._open[group_id]
        return [
            f"{len(self._open)} open groups; {group_id} has {len(group.members)} of {group.samples} scores since "
            f"{_clock(group.opened_s)} and closes at {_clock(closes_s)}"
        ]

    def _is_open(self, closes_s: float, group_id: str) -> bool:
        group = self._open.get(group_id)
        return group is not None and group.closes_s == closes_s

    def _opened(self, event: RolloutScored, now_s: float) -> _Open:
        # A backlog read after an outage is past its deadlines, and its groups are whole nevertheless.
        # A deadline that a damaged record claims must not keep it open for ever.
        closes_s = min(max(event.deadline_s, now_s + self._settings.settle_s), now_s + self._settings.longest_s)
        group = _Open(samples=event.samples, opened_s=now_s, closes_s=closes_s)
        self._open[event.group_id] = group
        heapq.heappush(self._closings, (closes_s, event.group_id))
        return group

    def _close(self, group_id: str, now_s: float) -> Turn:
        group = self._open.pop(group_id)
        scores = [score for score, _ in group.members.values()]
        records = tuple(record for _, record in group.members.values())
        self._memory.remember(group_id, tuple(score.rollout for score in scores), now_s, closed=True)
        event = close_group(scores, self._settings, now_s)
        return Turn(
            outputs=(Output("groups", event, key=group_id, cause=records[-1], links=records),),
            finished=tuple(record.ref for record in records),
        )

    def _duplicate(self, event: RolloutScored, record: Record, now_s: float) -> Turn:
        self._memory.remember(event.group_id, (event.rollout,), now_s, closed=False)
        end = RolloutDisposed(
            rollout_id=event.rollout_id,
            group_id=event.group_id,
            rollout=event.rollout,
            disposition="duplicate",
            time_s=now_s,
        )
        return Turn(
            outputs=(Output("groups", end, key=event.group_id, cause=record),),
            finished=(record.ref,),
        )


def _clock(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%H:%M:%SZ")
