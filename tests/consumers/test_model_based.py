"""Aggregator, batcher and tracker on an exactly-once log in memory, against a ten-line reference.

The machine does to them whatever a real log and real crashes do: requests of which nothing comes; scores repeated,
reordered between groups, late, of a later attempt; time that passes deadlines; a crash of either stage, also between
two transactions, with a restart from what was committed (through the real tracker's metadata) and from the stage's own
outputs; a broker that lost what was committed. The reference only counts ends.
"""

import itertools
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from random import Random

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from consumers.batches.batcher import Batcher
from consumers.batches.settings import BatchSettings
from consumers.groups.aggregate import Aggregator
from consumers.groups.memory import SKEW_S
from consumers.groups.settings import GroupSettings
from schemas import (
    BatchPlanned,
    Event,
    GroupDropped,
    GroupEvaluated,
    GroupReady,
    GroupRequested,
    Ref,
    RolloutDisposed,
    RolloutScored,
    StepCompleted,
)
from streams.record import Record
from streams.stages.offsets import OffsetTracker
from streams.stages.processor import Processor, ProcessResult
from tests.builders import group_requested, record_at, rollout_scored, step_completed

SAMPLES = 3
DEADLINE_S = 50.0
GROUP_SETTINGS = GroupSettings(min_samples=2, settle_s=5.0, remember_s=10_000_000.0)
BATCH_SETTINGS = BatchSettings(groups_per_batch=2, max_staleness=1, lookahead=2, token_budget=64)


def reference(
    scores: Sequence[RolloutScored], groups: Sequence[Event], batches: Sequence[Event]
) -> tuple[Counter[Ref], set[Ref]]:
    """How often each scored rollout record ended, and which may be in flight still."""
    ends: Counter[Ref] = Counter()
    ready: set[Ref] = set()
    late: set[Ref] = set()  # recorded without memory of the group: it counts where nothing else ended the rollout
    for event in groups:
        members = [(m.rollout, m.disposition) for m in getattr(event, "members", ())]
        ends.update(ref for ref, end in members if end is not None or not isinstance(event, GroupReady))
        ready |= {ref for ref, end in members if end is None and isinstance(event, GroupReady)}
        if isinstance(event, RolloutDisposed):
            (ends.update if event.disposition != "expired" else late.update)([event.rollout])
    for event in batches:
        ends.update(s.rollout for s in (event.sequences if isinstance(event, BatchPlanned) else ()))
        ends.update(m.rollout for m in (event.members if isinstance(event, GroupDropped) else ()))
    ends.update(late - ends.keys() - ready)
    return ends, ready | {score.rollout for score in scores}


class Stage:
    """As `streams.stages.processor` promises: a transaction's outputs and offsets are on the log together, or none."""

    def __init__(
        self, make: Callable[[float], Processor], sources: dict[str, list[Event]], out: list[Event], recall_s: float
    ) -> None:
        self._make, self.sources, self.out, self._recall_s = make, sources, out, recall_s
        self._committed: dict[str, tuple[int, str]] = {}
        self.processor, self._trackers = make(0.0), {topic: OffsetTracker(0) for topic in sources}
        self.read = dict.fromkeys(sources, 0)
        self.reached = dict.fromkeys(sources, 0)  # what was ever delivered cannot change its place any more

    def crash(self, now_s: float, *, offsets_lost: bool = False) -> None:
        """A restart; the inputs but the last are read to their end first, as the runner does with `also`."""
        if offsets_lost:
            self._committed.clear()
            for topic in list(self.sources)[:-1] if self.out else ():
                times_s = [event.time_s for event in self.sources[topic]]
                self._committed[topic] = (bisect_left(times_s, now_s - self._recall_s), "")
        committed = {topic: self._committed.get(topic, (0, "")) for topic in self.sources}
        self.processor = self._make(now_s)
        self._trackers = {topic: OffsetTracker.restore(*state) for topic, state in committed.items()}
        self.read = {topic: offset for topic, (offset, _) in committed.items()}
        for event in self.out:
            if event.time_s >= now_s - self._recall_s:
                self.processor.on_own_output(event, record("own", 0, "own"))
        self._again = list(self.sources)[:-1]

    _again: Sequence[str] = ()

    def deliver(self, most: int, now_s: float, *, dies: bool) -> None:
        """A transaction over up to `most` records a topic; `dies`: a crash after processing and before the write."""
        results = []
        for topic, source in self.sources.items():
            limit = len(source) if topic in self._again else self.read[topic] + most
            for offset in range(self.read[topic], min(len(source), limit)):
                if not self._trackers[topic].is_finished(offset):
                    self._trackers[topic].begin(offset)
                    results.append(self.processor.on_event(source[offset], record(topic, offset, topic), now_s))
                    self._finish(results[-1])
                self.read[topic] = offset + 1
                self.reached[topic] = max(self.reached[topic], self.read[topic])
        self._again = ()
        due_s = self.processor.next_time_s()
        if due_s is not None and due_s <= now_s:
            results.append(self.processor.on_time(now_s))
            self._finish(results[-1])
        self.write(results, now_s, dies=dies)

    def _finish(self, result: ProcessResult) -> None:
        for ref in result.finished:
            self._trackers[ref.topic].finish(ref.offset)

    def observe(self, event: Event, now_s: float) -> None:
        result = self.processor.on_side_input(event, record("steps", 0, "steps"), now_s)
        self._finish(result)
        self.write([result], now_s, dies=False)

    def write(self, results: Sequence[ProcessResult], now_s: float, *, dies: bool) -> None:
        if dies:
            self.crash(now_s)
            return
        self.out += [output.event for result in results for output in result.outputs]
        self._committed = {topic: tracker.commit() for topic, tracker in self._trackers.items()}


def record(topic: str, offset: int, name: str) -> Record:
    return record_at(name, offset)


class PipelineMachine(RuleBasedStateMachine):
    """scores ▶ aggregator ▶ groups ▶ batcher ▶ batches ▶ a learner that does steps, possibly twice."""

    settings = GROUP_SETTINGS

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1000.0
        self.rollouts = itertools.count()
        self.asked = 0
        self.requested_s: list[float] = []
        self.prompts: list[Event] = []
        self.scores: list[Event] = []
        self.groups: list[Event] = []
        self.batches: list[Event] = []
        self.steps: list[StepCompleted] = []
        sources = {"prompts": self.prompts, "scores": self.scores}
        remember_s = self.settings.remember_s
        self.aggregator = Stage(
            lambda now_s: Aggregator(self.settings, now_s - remember_s), sources, self.groups, remember_s + SKEW_S
        )
        self.batcher = Stage(
            lambda now_s: Batcher(BATCH_SETTINGS, (1.0, 0.0)), {"groups": self.groups}, self.batches, 1e9
        )
        self.offsets_lost = False

    def score(self, group: int, index: int, attempt: int, reward: float | None) -> RolloutScored:
        version = len(self.steps)
        return rollout_scored(
            f"g{group}",
            index,
            attempt=attempt,
            rollout=Ref("rollouts", 0, next(self.rollouts)),
            samples=SAMPLES,
            deadline_s=self.now_s + DEADLINE_S,
            valid=reward is not None,
            time_s=self.now_s,
            reward=reward or 0.0,
            prompt_tokens=2,
            response_tokens=2,
            oldest_version=version,
            newest_version=version,
            purpose="evaluate" if group % 5 == 4 else "train",
            requested_s=self.requested_s[group],
        )

    def request(self, group: int) -> GroupRequested:
        return group_requested(
            f"g{group}",
            sequence=group,
            samples=SAMPLES,
            time_s=self.requested_s[group],
            deadline_s=self.now_s + DEADLINE_S,
            purpose="evaluate" if group % 5 == 4 else "train",
        )

    @rule()
    def asked_in_vain(self) -> None:
        """A group of which nothing ever comes, unless `scored` says otherwise."""
        self.requested_s.append(self.now_s)
        self.prompts.append(self.request(self.asked))
        self.asked += 1

    @rule(
        rewards=st.lists(st.sampled_from([0.0, 1.0, None]), min_size=1, max_size=SAMPLES),
        order=st.randoms(use_true_random=False),
    )
    def generated(self, rewards: list[float | None], order: Random) -> None:
        """A new group, whole or in part, its scores in any order and between those of the group before."""
        self.requested_s.append(self.now_s)
        self.prompts.append(self.request(self.asked))
        scores: list[Event] = [self.score(self.asked, index, 0, reward) for index, reward in enumerate(rewards)]
        self.asked += 1
        tail = self.scores[max(self.aggregator.reached["scores"], len(self.scores) - 2) :]
        del self.scores[len(self.scores) - len(tail) :]
        mixed = scores + tail
        order.shuffle(mixed)
        self.scores += mixed

    @precondition(lambda self: self.asked)
    @rule(
        back=st.integers(1, 4),
        index=st.integers(0, SAMPLES - 1),
        attempt=st.integers(0, 1),
        reward=st.sampled_from([0.0, 1.0, None]),
    )
    def scored(self, back: int, index: int, attempt: int, reward: float | None) -> None:
        """A sample of a recent group as a record of its own: a missing one, a later attempt, or too late."""
        self.scores.append(self.score(max(0, self.asked - back), index, attempt, reward))

    @precondition(lambda self: self.scores)
    @rule(data=st.data())
    def scored_again(self, data: st.DataObject) -> None:
        """The same record scored twice: what at-least-once does after a crash."""
        self.scores.append(data.draw(st.sampled_from(self.scores)))

    @rule(most=st.integers(1, 12), dies=st.booleans())
    def aggregate(self, most: int, dies: bool) -> None:
        self.aggregator.deliver(most, self.now_s, dies=dies)

    @rule(most=st.integers(1, 12), dies=st.booleans())
    def plan(self, most: int, dies: bool) -> None:
        self.batcher.deliver(most, self.now_s, dies=dies)

    @rule()
    def aggregator_crashes(self) -> None:
        self.aggregator.crash(self.now_s)

    @rule()
    def committed_offsets_of_the_aggregator_are_lost(self) -> None:
        self.aggregator.crash(self.now_s, offsets_lost=True)
        self.offsets_lost = True

    @rule()
    def batcher_crashes(self) -> None:
        self.batcher.crash(self.now_s)
        for step in self.steps:
            self.batcher.observe(step, self.now_s)

    @rule(seconds=st.sampled_from([1.0, 4.0, 60.0]))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds

    @precondition(lambda self: len(self.planned()) > len(self.steps))
    @rule(twice=st.booleans())
    def trained(self, twice: bool) -> None:
        """The next planned batch is trained; a learner that crashed says so twice."""
        number = len(self.steps)
        step = step_completed(number, time_s=self.now_s)
        self.steps.append(step)
        for _ in range(1 + twice):
            self.batcher.observe(step, self.now_s)

    def planned(self) -> list[BatchPlanned]:
        return [event for event in self.batches if isinstance(event, BatchPlanned)]

    @invariant()
    def every_rollout_ends_at_most_once_and_only_if_it_was_scored(self) -> None:
        ends, known = reference([s for s in self.scores if isinstance(s, RolloutScored)], self.groups, self.batches)
        assert set(ends) <= known
        assert all(count == 1 for count in ends.values()), ends

    @invariant()
    def no_group_is_trained_and_dropped(self) -> None:
        trained = [group for batch in self.planned() for group in batch.groups]
        drops = [event for event in (*self.groups, *self.batches) if isinstance(event, GroupDropped)]
        dropped = {event.group_id for event in drops if event.members}
        closed = Counter(
            event.group_id
            for event in self.groups
            if isinstance(event, GroupReady | GroupDropped | GroupEvaluated) and event.members
        )
        assert len(trained) == len(set(trained))
        assert not dropped & set(trained)
        assert all(count == 1 for count in closed.values()), closed
        # An end without members is recorded where nobody can say any more whether there was another.
        ends = [event for event in self.groups if isinstance(event, GroupDropped | GroupEvaluated)]
        empty = Counter(event.group_id for event in ends if not event.members)
        if self.settings is GROUP_SETTINGS:
            assert all(count == 1 for count in empty.values()), empty
            assert not empty.keys() & closed.keys()

    @invariant()
    def batch_numbers_are_consecutive_and_within_their_bounds(self) -> None:
        assert [batch.batch for batch in self.planned()] == list(range(len(self.planned())))
        assert all(batch.staleness_max <= BATCH_SETTINGS.max_staleness for batch in self.planned())
        assert len(self.planned()) - len(self.steps) <= BATCH_SETTINGS.lookahead

    def teardown(self) -> None:
        """When everything was read and every deadline has passed, all have ended or wait for a batch."""
        for _ in range(2):
            self.now_s += 2 * DEADLINE_S + self.settings.longest_s
            self.aggregator.deliver(10_000, self.now_s, dies=False)
            self.batcher.deliver(10_000, self.now_s, dies=False)
        ends, known = reference([s for s in self.scores if isinstance(s, RolloutScored)], self.groups, self.batches)
        ready = {
            member.rollout
            for event in self.groups
            if isinstance(event, GroupReady)
            for member in event.members
            if member.disposition is None
        }
        assert known - ready <= set(ends)
        # Of requests older than anything recalled nobody knows whether their groups ended, if offsets are lost.
        closed = (GroupReady, GroupDropped, GroupEvaluated)
        assert (self.offsets_lost and self.settings is not GROUP_SETTINGS) or {
            event.group_id for event in self.groups if isinstance(event, closed)
        } >= {f"g{group}" for group in range(self.asked)}


class ForgetfulMachine(PipelineMachine):
    """With a memory so short that nearly every straggler finds its group forgotten."""

    settings = msgspec.structs.replace(GROUP_SETTINGS, remember_s=6.0, remember_groups=2)


TestForgetful = ForgetfulMachine.TestCase
TestForgetful.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
TestPipeline = PipelineMachine.TestCase
TestPipeline.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
