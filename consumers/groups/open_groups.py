"""The open groups: what was requested, which members have arrived, and when each is to be closed."""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from schemas import GroupRequested, Purpose, Ref, RolloutScored
from streams.record import Record


class Asked(NamedTuple):
    """What is kept of a request until its group is closed (not the prompt, which may be long)."""

    record: Ref
    prompt_id: str
    task: str
    samples: int
    purpose: Purpose
    evaluation: int | None
    requested_s: float

    @classmethod
    def of(cls, request: GroupRequested, record: Ref) -> "Asked":
        """The facts of `request`, which is at `record`."""
        facts = (request.prompt_id, request.task, request.samples, request.purpose, request.evaluation)
        return cls(record, *facts, request.time_s)


@dataclass(slots=True)
class OpenGroup:
    """Members by rollout id, in the order in which their first scored attempts arrived. Times are unix seconds.

    `since_s`: when its first score arrived, else its request; `asked`: None where its request was not read yet;
    `duplicates`: repeated rollouts that were recorded as such; `due_s`: when it was to be closed at first.
    """

    group_id: str
    samples: int
    since_s: float
    closes_s: float
    asked: Asked | None = None
    members: dict[str, tuple[RolloutScored, Record]] = field(default_factory=dict)
    duplicates: set[Ref] = field(default_factory=set)
    due_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.due_s = self.closes_s

    @property
    def complete(self) -> bool:
        """Whether every member is there."""
        return len(self.members) == self.samples

    def finished(self) -> tuple[Ref, ...]:
        """The records that closing it finishes."""
        asked = () if self.asked is None else (self.asked.record,)
        return (*(record.ref for _, record in self.members.values()), *asked)

    def missing(self, now_s: float) -> str:
        """What it waits for, as part of a sentence."""
        age_s, left_s = max(0.0, now_s - self.since_s), max(0.0, self.closes_s - now_s)
        until = f"since {age_s:.0f} s and for {left_s:.0f} s more"
        if not self.members:
            return f"waits for the first of {self.samples} rollouts of group {self.group_id} {until}"
        return (
            f"waits for {self.samples - len(self.members)} of {self.samples} rollouts of group {self.group_id} {until}"
        )


class OpenGroups:
    """The open groups by id and by the time of closing. Pure; every method is O(log groups) but `waiting`."""

    def __init__(self) -> None:
        self._groups: dict[str, OpenGroup] = {}
        self._closings: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self._groups)

    def __iter__(self) -> Iterator[OpenGroup]:
        return iter(self._groups.values())

    def get(self, group_id: str) -> OpenGroup | None:
        """The open group with this id; None: there is none."""
        return self._groups.get(group_id)

    def open(self, group: OpenGroup) -> None:
        """Add a group that is not open yet."""
        self._groups[group.group_id] = group
        heapq.heappush(self._closings, (group.closes_s, group.group_id))

    def move(self, group: OpenGroup, closes_s: float) -> None:
        """Have it closed at another time."""
        group.closes_s = closes_s
        heapq.heappush(self._closings, (closes_s, group.group_id))

    def close(self, group_id: str) -> OpenGroup:
        """Remove and return it."""
        return self._groups.pop(group_id)

    def next_time_s(self) -> float | None:
        """When the next group is to be closed, unix seconds."""
        while self._closings and not self._is_due(*self._closings[0]):
            heapq.heappop(self._closings)
        return self._closings[0][0] if self._closings else None

    def due(self, now_s: float) -> Iterator[OpenGroup]:
        """The groups that are due, still open; each once, unless it is moved to a time that is due too."""
        while (due_s := self.next_time_s()) is not None and due_s <= now_s:
            _, group_id = heapq.heappop(self._closings)
            yield self._groups[group_id]

    def waiting(self, now_s: float) -> list[str]:
        """The open groups in one sentence: the one of which something came longest ago, else the oldest request."""
        if not self._groups:
            return []
        oldest = min(self._groups.values(), key=lambda group: (not group.members, group.since_s))
        others = len(self._groups) - 1
        return [f"{oldest.missing(now_s)}; {others} other groups are open" if others else oldest.missing(now_s)]

    def _is_due(self, closes_s: float, group_id: str) -> bool:
        group = self._groups.get(group_id)
        return group is not None and group.closes_s == closes_s
