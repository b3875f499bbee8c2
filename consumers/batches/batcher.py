"""The batcher: ready groups become numbered batches, packed for the learner's ranks. No I/O, no own clock.

    groups ──▶ ready, oldest weights first ──▶ BatchPlanned b       enough groups, and less than `lookahead` ahead
                  └──────────────────────────▶ GroupDropped(stale)  b − its oldest version > max_staleness

Staleness is enforced by `consumers.batches.staleness`.
A GroupReady is finished when its group is on the log as planned or dropped. After a crash the unfinished ones are read
again, and the next number follows the last batch on the log. Should the broker lose the commits, all of them are read
again: those of the last `max_staleness` batches are known by id, and older ones are stale, so none is planned twice.
"""

from collections import deque

import msgspec

from consumers.batches.packing import plan
from consumers.batches.settings import BatchSettings
from consumers.batches.staleness import WaitingGroup, WaitingGroups
from schemas import (
    BatchPlanned,
    Disposition,
    Event,
    GroupDropped,
    GroupReady,
    Member,
    PlannedSequence,
    Ref,
    StepCompleted,
    Unanimous,
)
from streams.record import Output, Record
from streams.stages.numbering import Numbering
from streams.stages.processor import ProcessResult


class Batcher:
    """A `streams.stages.processor.Processor` over all partitions of `groups`, observing `steps`; cost (a, b) as in
    `packing.plan`.
    """

    def __init__(self, settings: BatchSettings, cost: tuple[float, float]) -> None:
        self._settings = settings
        self._cost = cost
        self._waiting = WaitingGroups(settings.max_staleness)
        self._arrivals = 0
        self._planned = 0
        self._trained = 0
        self._numbering: Numbering[tuple[str, ...]] = Numbering(settings.max_staleness + 1)
        # The groups of the batches that could take a group again: what batch b holds is at least b - max_staleness old.
        self._recent: deque[tuple[str, ...]] = deque(maxlen=settings.max_staleness + 1)

    def on_event(self, event: Event, record: Record, now_s: float) -> ProcessResult:
        """Takes one event of `groups`; all but GroupReady are finished at once."""
        if not isinstance(event, GroupReady):
            return ProcessResult(finished=(record.ref,))
        members = tuple(member for member in event.members if member.disposition is None)
        if not members or any(event.group_id in groups for groups in self._recent):
            return ProcessResult(finished=(record.ref,))
        oldest_version = min(member.oldest_version for member in members)
        ready = WaitingGroup(oldest_version, self._arrivals, event, members, record)
        self._arrivals += 1
        if any(_tokens(member) > self._settings.token_budget for member in members):
            return ProcessResult(outputs=(_dropped(ready, "invalid", now_s),), finished=(record.ref,))
        self._waiting.add(ready)
        return self._advance(now_s)

    def on_side_input(self, event: Event, record: Record, now_s: float) -> ProcessResult:
        """Takes one event of `steps`: a trained batch makes room for the next."""
        # A step of a batch that was never planned does not belong to this run.
        if isinstance(event, StepCompleted) and event.batch < self._planned:
            self._trained = max(self._trained, event.batch + 1)
        return self._advance(now_s)

    def on_own_output(self, event: Event, record: Record) -> None:
        """Numbering resumes after this stage's last batch on the log, whatever else is written there."""
        if isinstance(event, BatchPlanned):
            self._numbering.add(event.batch, event.groups)
            self._planned = self._numbering.next
            self._recent = deque(self._numbering.items, self._recent.maxlen)

    def on_time(self, now_s: float) -> ProcessResult:
        """Nothing here has a deadline."""
        return ProcessResult()

    def next_time_s(self) -> float | None:
        """Never."""
        return None

    def waiting(self, now_s: float) -> list[str]:
        """What the next batch waits for."""
        wanted, ready = self._settings.groups_per_batch, len(self._waiting)
        if self._is_over():
            return [f"all {self._planned} batches are planned; {ready} groups are left over"]
        if self._planned - self._trained >= self._settings.lookahead:
            return [f"batch {self._planned} waits for the learner to train batch {self._trained}"]
        return [f"batch {self._planned} has {ready} of {wanted} groups"]

    def _advance(self, now_s: float) -> ProcessResult:
        outputs: list[Output] = []
        finished: list[Ref] = []
        while not self._is_over():
            for stale in self._waiting.take_stale(self._planned):
                outputs.append(_dropped(stale, "stale", now_s))
                finished.append(stale.record.ref)
            ahead = self._planned - self._trained
            if len(self._waiting) < self._settings.groups_per_batch or ahead >= self._settings.lookahead:
                break
            groups = self._waiting.take(self._settings.groups_per_batch)
            records = tuple(group.record for group in groups)
            batch = self._batch(groups, now_s)
            outputs.append(Output("batches", batch, cause=records[-1], links=records))
            self._recent.append(batch.groups)
            finished += [record.ref for record in records]
            self._planned += 1
        return ProcessResult(outputs=tuple(outputs), finished=tuple(finished))

    def _is_over(self) -> bool:
        return self._settings.max_batches is not None and self._planned >= self._settings.max_batches

    def _batch(self, groups: list[WaitingGroup], now_s: float) -> BatchPlanned:
        members = [member for group in groups for member in group.members]
        packed = plan(
            [_tokens(member) for member in members], self._settings.ranks, self._settings.token_budget, self._cost
        )
        staleness = [self._planned - member.oldest_version for member in members]
        return BatchPlanned(
            batch=self._planned,
            groups=tuple(group.group.group_id for group in groups),
            sequences=tuple(_sequence(member, group.group.unanimous) for group in groups for member in group.members),
            ranks=tuple(tuple(tuple(micro) for micro in rank) for rank in packed.ranks),
            token_budget=self._settings.token_budget,
            time_s=now_s,
            loads=packed.loads,
            fill=packed.fill,
            imbalance=packed.imbalance,
            staleness_max=max(staleness),
            staleness_mean=sum(staleness) / len(staleness),
            waited_s=sum(now_s - group.group.time_s for group in groups) / len(groups),
        )


def _tokens(member: Member) -> int:
    return member.prompt_tokens + member.response_tokens


def _sequence(member: Member, unanimous: Unanimous | None) -> PlannedSequence:
    return PlannedSequence(
        rollout_id=member.rollout_id,
        rollout=member.rollout,
        advantage=member.advantage,
        reward=member.reward,
        prompt_tokens=member.prompt_tokens,
        response_tokens=member.response_tokens,
        oldest_version=member.oldest_version,
        unanimous=unanimous,
    )


def _dropped(ready: WaitingGroup, reason: Disposition, now_s: float) -> Output:
    """The disposition of the members that were to be trained on; the others have theirs in GroupReady already."""
    group = ready.group
    event = GroupDropped(
        group_id=group.group_id,
        prompt_id=group.prompt_id,
        task=group.task,
        reason=reason,
        members=tuple(msgspec.structs.replace(member, disposition=reason) for member in ready.members),
        time_s=now_s,
        pass_rate=group.pass_rate,
        reward_mean=group.reward_mean,
        requested_s=group.requested_s,
    )
    return Output("batches", event, cause=ready.record)
