"""The aggregator: collects the scores of a group and disposes of every rollout exactly once. No I/O, no own clock.

    prompts ─▶ open group
    scores ──▶ open group ──▶ GroupReady | GroupDropped | GroupEvaluated    complete, or its deadline has passed
       ├─────▶ (nothing)                                                    the same rollout record scored again
       ├─────▶ RolloutDisposed(duplicate)                                   a later attempt, or a straggler
       └─────▶ RolloutDisposed(expired)                                     of a group that ended without members, or is
                                                                            older than anything remembered

A score is finished when its rollout's disposition is on the log, a request when its group's event is. After a crash the
unfinished ones rebuild the open groups, and `on_own_output` rebuilds the memory of the closed ones.
"""

import math

from consumers.groups.close import close_group, unheard_group
from consumers.groups.memory import Memory
from consumers.groups.open_groups import Asked, OpenGroup, OpenGroups
from consumers.groups.settings import GroupSettings
from schemas import (
    Disposition,
    Event,
    GroupDropped,
    GroupEvaluated,
    GroupReady,
    GroupRequested,
    RolloutDisposed,
    RolloutScored,
)
from streams.errors import Poison
from streams.record import Output, Record
from streams.stages.processor import ProcessResult


class Aggregator:
    """A `streams.stages.processor.Processor` over the requests and scores of one partition.

    `known_since_s`: `on_own_output` is called with every group that was closed later (see `Memory`; unix seconds).
    """

    def __init__(self, settings: GroupSettings, known_since_s: float = -math.inf) -> None:
        self._settings = settings
        self._open = OpenGroups()
        self._memory = Memory(settings.remember_s, settings.remember_groups, known_since_s)
        self._read = (-math.inf, -math.inf)

    def on_event(self, event: Event, record: Record, now_s: float) -> ProcessResult:
        """Takes a request or a score. Raises Poison for others, and for a member that its group did not request."""
        self._memory.forget(now_s)
        match event:
            case GroupRequested():
                return self._requested(event, record, now_s)
            case RolloutScored():
                self._read = (now_s, record.time_s)
                return self._scored(event, record, now_s)
            case _:
                raise Poison(f"{type(event).__name__} is not RolloutScored")

    def on_side_input(self, event: Event, record: Record, now_s: float) -> ProcessResult:
        """No side topics: nothing to do."""
        return ProcessResult()

    def on_own_output(self, event: Event, record: Record) -> None:
        """Remembers what this stage wrote before it was restarted."""
        match event:
            case GroupReady() | GroupDropped() | GroupEvaluated():
                rollouts = tuple(member.rollout for member in event.members)
                self._memory.remember(
                    event.group_id, rollouts, event.time_s, closed=True, requested_s=event.requested_s
                )
            case RolloutDisposed(disposition="duplicate"):
                # The group was requested earlier, and this record does not hold when.
                latest_s = event.time_s
                self._memory.remember(event.group_id, (event.rollout,), latest_s, closed=False, requested_s=latest_s)
            case _:
                pass

    def on_time(self, now_s: float) -> ProcessResult:
        """Closes the groups whose deadline has passed, with the members they have."""
        results = []
        for group in self._open.due(now_s):
            if not group.members and self._reads_backlog(group, now_s):
                self._open.move(group, now_s + self._settings.settle_s)
            else:
                results.append(self._close(group, now_s))
        self._memory.forget(now_s)
        return ProcessResult(
            outputs=tuple(output for result in results for output in result.outputs),
            finished=tuple(ref for result in results for ref in result.finished),
        )

    def next_time_s(self) -> float | None:
        """When the next open group is to be closed, unix seconds."""
        return self._open.next_time_s()

    def waiting(self, now_s: float) -> list[str]:
        """The open groups in one sentence, one of them by name."""
        return self._open.waiting(now_s)

    def _requested(self, request: GroupRequested, record: Record, now_s: float) -> ProcessResult:
        if self._memory.closed(request.group_id):
            return ProcessResult(finished=(record.ref,))
        asked, group = Asked.of(request, record.ref), self._open.get(request.group_id)
        if group is None and request.time_s <= self._memory.edge_s:
            # It may have been closed and forgotten: its scores are refused, and it is closed without members.
            end = unheard_group(request.group_id, asked, now_s)
            return ProcessResult((Output("groups", end, key=request.group_id, cause=record),), (record.ref,))
        if group is None:
            closes_s = self._unheard_until_s(request, now_s)
            duplicates = self._memory.rollouts(request.group_id)
            self._open.open(OpenGroup(request.group_id, request.samples, now_s, closes_s, asked, duplicates=duplicates))
        elif group.asked is None:
            group.asked = asked
        else:
            return ProcessResult(finished=(record.ref,))
        return ProcessResult()

    def _scored(self, event: RolloutScored, record: Record, now_s: float) -> ProcessResult:
        if not 0 <= event.index < event.samples:
            raise Poison(f"rollout {event.rollout_id} has index {event.index} in a group of {event.samples} samples")
        if self._memory.ended(event.group_id, event.rollout):
            return ProcessResult(finished=(record.ref,))
        if self._memory.closed(event.group_id):
            # It may have been closed without members because it was not remembered (see `_requested`).
            heard = self._memory.heard(event.group_id)
            return self._disposed(event, record, "duplicate" if heard else "expired", now_s)
        group = self._open.get(event.group_id)
        if group is None:
            if event.requested_s <= self._memory.edge_s:
                return self._disposed(event, record, "expired", now_s)
            duplicates, closes_s = self._memory.rollouts(event.group_id), self._heard_until_s(event, now_s)
            group = OpenGroup(event.group_id, event.samples, now_s, closes_s, duplicates=duplicates)
            self._open.open(group)
        elif not group.members:
            group.samples, group.since_s = event.samples, now_s
            self._open.move(group, self._heard_until_s(event, now_s))
        known = group.members.get(event.rollout_id)
        if known is not None:
            if known[0].rollout == event.rollout or event.rollout in group.duplicates:
                return ProcessResult(finished=(record.ref,))
            # Kept here too: a group may stay open longer than ended rollouts are remembered.
            group.duplicates.add(event.rollout)
            return self._disposed(event, record, "duplicate", now_s)
        group.members[event.rollout_id] = (event, record)
        return self._close(group, now_s) if group.complete else ProcessResult()

    def _heard_until_s(self, event: RolloutScored, now_s: float) -> float:
        # A backlog read after an outage is past its deadlines, but its groups are complete nevertheless.
        # A deadline in a damaged record must not keep it open indefinitely.
        return min(max(event.deadline_s, now_s + self._settings.settle_s), now_s + self._settings.longest_s)

    def _unheard_until_s(self, request: GroupRequested, now_s: float) -> float:
        # A producer starts no training group past its deadline, so that no score comes after those it had started then.
        # It generates a held-back one however late it is, so that only the longest wait bounds it.
        longest_s = now_s + self._settings.longest_s
        if request.purpose == "evaluate":
            return longest_s
        return min(max(request.deadline_s, now_s) + self._settings.unheard_s, longest_s)

    def _reads_backlog(self, group: OpenGroup, now_s: float) -> bool:
        """Whether the scores that are being read were written before `group` was due: its own may still come.

        This relies on writers' clocks; one that is slow or stands still must not keep the group open indefinitely.
        """
        read_s, written_s = self._read
        fresh = now_s - read_s < self._settings.settle_s and now_s - group.since_s < self._settings.longest_s
        return fresh and written_s < group.due_s

    def _close(self, group: OpenGroup, now_s: float) -> ProcessResult:
        self._open.close(group.group_id)
        scores = [score for score, _ in group.members.values()]
        records = tuple(record for _, record in group.members.values())
        event: GroupReady | GroupDropped | GroupEvaluated
        if scores:
            event = close_group(scores, self._settings, now_s)
        else:
            assert group.asked is not None, "a group is opened by a request or by a score"
            event = unheard_group(group.group_id, group.asked, now_s)
        rollouts = tuple(score.rollout for score in scores)
        rollouts += tuple(group.duplicates - self._memory.rollouts(group.group_id))
        self._memory.remember(group.group_id, rollouts, now_s, closed=True, requested_s=event.requested_s)
        return ProcessResult(
            outputs=(
                Output("groups", event, key=group.group_id, cause=records[-1] if records else None, links=records),
            ),
            finished=group.finished(),
        )

    def _disposed(self, event: RolloutScored, record: Record, disposition: Disposition, now_s: float) -> ProcessResult:
        if disposition == "duplicate":
            self._memory.remember(event.group_id, (event.rollout,), now_s, closed=False, requested_s=event.requested_s)
        end = RolloutDisposed(
            rollout_id=event.rollout_id,
            group_id=event.group_id,
            rollout=event.rollout,
            disposition=disposition,
            time_s=now_s,
        )
        return ProcessResult(
            outputs=(Output("groups", end, key=event.group_id, cause=record),),
            finished=(record.ref,),
        )
