"""The batcher: numbers, order, staleness, look-ahead, and that every group ends once whatever crashes."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers.batches.batcher import Batcher
from consumers.batches.settings import BatchSettings
from schemas import BatchPlanned, Event, GroupDropped, GroupReady, Member, Ref, RolloutDisposed, StepCompleted
from streams.record import Output
from streams.stages.processor import ProcessResult
from tests.builders import group_ready, record_at, step_completed


def ready(name: int, version: int = 0, tokens: int = 10, invalid: int = 0, time_s: float = 0.0) -> GroupReady:
    """A group of two members to be trained on, and `invalid` others."""
    members = [
        Member(
            rollout_id=f"p.{name}.{index}",
            rollout=Ref("rollouts", 0, name * 10 + index),
            reward=float(index % 2),
            advantage=1.0 - 2 * (index % 2),
            prompt_tokens=tokens // 2,
            response_tokens=tokens - tokens // 2,
            oldest_version=version,
            newest_version=version + 1,
            disposition=None if index < 2 else "invalid",
        )
        for index in range(2 + invalid)
    ]
    return group_ready(f"p.{name}", *members, time_s=time_s, deadline_s=100.0)


@dataclass
class Stage:
    """The runner's contract in memory: a crash keeps outputs and finished inputs and loses everything else."""

    settings: BatchSettings
    log: list[Event] = field(default_factory=list)
    steps: list[StepCompleted] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    finished: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.processor = Batcher(self.settings, (1.0, 0.1))

    def deliver(self, event: Event) -> ProcessResult:
        self.log.append(event)
        return self.process(len(self.log) - 1)

    def process(self, offset: int) -> ProcessResult:
        return self.commit(self.processor.on_event(self.log[offset], record_at("groups", offset), 10.0))

    def train(self, batch: int) -> ProcessResult:
        self.steps.append(step_completed(batch))
        return self.commit(self.processor.on_side_input(self.steps[-1], record_at("steps", len(self.steps)), 10.0))

    def commit(self, result: ProcessResult) -> ProcessResult:
        offsets = [ref.offset for ref in result.finished]
        assert len(set(offsets)) == len(offsets)
        assert self.finished.isdisjoint(offsets)
        self.finished.update(offsets)
        self.outputs.extend(result.outputs)
        return result

    def crash(self, *, offsets_lost: bool = False) -> None:
        self.processor = Batcher(self.settings, (1.0, 0.1))
        for offset, output in enumerate(self.outputs):
            self.processor.on_own_output(output.event, record_at("batches", offset))
        if offsets_lost:
            self.finished.clear()
        for offset in range(len(self.log)):
            if offset not in self.finished:
                self.process(offset)
        for done in self.steps:
            self.commit(self.processor.on_side_input(done, record_at("steps", 0), 10.0))

    @property
    def batches(self) -> list[BatchPlanned]:
        return [output.event for output in self.outputs if isinstance(output.event, BatchPlanned)]

    @property
    def drops(self) -> list[GroupDropped]:
        return [output.event for output in self.outputs if isinstance(output.event, GroupDropped)]


def make(**fields: Any) -> Stage:
    return Stage(BatchSettings(**({"groups_per_batch": 2, "token_budget": 100, "ranks": 2} | fields)))


def test_a_batch_is_planned_when_its_groups_are_there() -> None:
    stage = make()
    assert stage.deliver(ready(0, tokens=20, invalid=1)) == ProcessResult()
    assert stage.processor.waiting(0.0) == ["batch 0 has 1 of 2 groups"]
    result = stage.deliver(ready(1, tokens=30, time_s=4.0))
    assert [ref.offset for ref in result.finished] == [0, 1]
    (output,) = result.outputs
    assert (output.topic, output.key) == ("batches", None)
    assert [link.offset for link in output.links] == [0, 1]
    (batch,) = stage.batches
    assert (batch.batch, batch.groups, batch.token_budget) == (0, ("p.0", "p.1"), 100)
    assert [sequence.rollout_id for sequence in batch.sequences] == ["p.0.0", "p.0.1", "p.1.0", "p.1.1"]
    assert sorted(i for rank in batch.ranks for micro in rank for i in micro) == [0, 1, 2, 3]
    assert [len(rank) for rank in batch.ranks] == [1, 1]
    assert (batch.sequences[1].advantage, batch.sequences[1].reward) == (-1.0, 1.0)
    assert (batch.sequences[2].prompt_tokens, batch.sequences[2].response_tokens) == (15, 15)
    assert batch.fill == pytest.approx(0.5)
    assert batch.waited_s == pytest.approx(8.0)


def test_a_plan_says_which_sequences_are_of_unanimous_groups() -> None:
    stage = make(groups_per_batch=2)
    stage.deliver(ready(0, invalid=1))
    result = stage.deliver(msgspec.structs.replace(ready(1), unanimous="wrong"))
    (plan,) = (output.event for output in result.outputs)
    assert isinstance(plan, BatchPlanned)
    assert {s.rollout_id: s.unanimous for s in plan.sequences} == {
        "p.0.0": None, "p.0.1": None, "p.1.0": "wrong", "p.1.1": "wrong"
    }  # fmt: skip


def test_oldest_weights_come_first() -> None:
    stage = make(lookahead=1, max_staleness=9)
    for name, version in enumerate([5, 5, 3, 4, 3]):
        stage.deliver(ready(name, version))
    assert stage.batches[0].groups == ("p.0", "p.1")
    stage.train(0)
    assert stage.batches[1].groups == ("p.2", "p.4")


def test_plans_no_further_ahead_than_asked() -> None:
    stage = make(lookahead=2, groups_per_batch=1)
    for name in range(4):
        stage.deliver(ready(name))
    assert len(stage.batches) == 2
    assert stage.processor.waiting(0.0) == ["batch 2 waits for the learner to train batch 0"]
    stage.train(0)
    stage.train(0)
    assert [batch.batch for batch in stage.batches] == [0, 1, 2]


def test_stale_groups_are_dropped_whole_when_their_batch_is_too_late() -> None:
    stage = make(lookahead=2, groups_per_batch=1, max_staleness=1)
    for name in range(3):
        stage.deliver(ready(name, invalid=1))
    (drop,) = stage.drops
    assert (drop.group_id, drop.reason) == ("p.2", "stale")
    # The invalid member has its disposition in GroupReady, and one is enough.
    assert [(member.rollout_id, member.disposition) for member in drop.members] == [
        ("p.2.0", "stale"),
        ("p.2.1", "stale"),
    ]
    assert [(batch.staleness_max, batch.staleness_mean) for batch in stage.batches] == [(0, 0.0), (1, 1.0)]
    assert stage.finished == {0, 1, 2}


def test_a_run_of_n_batches_ends_with_its_last() -> None:
    stage = make(groups_per_batch=1, max_batches=1, max_staleness=0)
    for name in range(3):
        stage.deliver(ready(name))
    stage.train(0)
    assert len(stage.batches) == 1
    assert stage.drops == []
    assert stage.finished == {0}
    assert stage.processor.waiting(0.0) == ["all 1 batches are planned; 2 groups are left over"]


def test_numbers_go_on_after_a_restart() -> None:
    stage = make(groups_per_batch=1, lookahead=1)
    stage.deliver(ready(0))
    stage.deliver(ready(1))
    stage.crash()
    assert [batch.batch for batch in stage.batches] == [0]
    stage.train(0)
    assert [(batch.batch, batch.groups) for batch in stage.batches] == [(0, ("p.0",)), (1, ("p.1",))]


def test_a_batch_that_somebody_else_wrote_does_not_move_the_numbers() -> None:
    stage = make(groups_per_batch=1, lookahead=10, max_staleness=3)
    for number in range(3):
        stage.deliver(ready(number))
    stranger = msgspec.structs.replace(stage.batches[0], batch=4000, groups=("p.9",))
    stage.outputs[2:2] = [Output("batches", stranger), Output("batches", stranger)]
    stage.crash()
    stage.deliver(ready(3))
    assert [batch.batch for batch in stage.batches] == [0, 1, 4000, 4000, 2, 3]
    stage.crash(offsets_lost=True)
    assert stage.batches[-1].groups == ("p.3",), "the groups of the last batches are known still"


def test_a_group_with_a_sequence_over_the_budget_is_dropped_as_invalid() -> None:
    stage = make()
    result = stage.deliver(ready(0, tokens=101))
    assert [drop.reason for drop in stage.drops] == ["invalid"]
    assert result.finished == (Ref("groups", 0, 0),)


def test_other_events_are_finished_at_once() -> None:
    stage = make()
    end = RolloutDisposed(
        rollout_id="p.0.0", group_id="p.0", rollout=Ref("rollouts", 0, 0), disposition="duplicate", time_s=0.0
    )
    assert stage.deliver(end) == ProcessResult(finished=(Ref("groups", 0, 0),))


def test_settings_refuse_a_cost_of_nothing() -> None:
    with pytest.raises(ValueError, match=r"cost \[0\.0, 0\.0\]"):
        BatchSettings(cost=(0.0, 0.0))


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("group"), st.integers(0, 4), st.integers(1, 120)),
        st.tuples(st.just("group"), st.integers(0, 4), st.integers(1, 60)),
        st.tuples(st.just("train")),
        st.tuples(st.just("crash")),
    ),
    max_size=50,
)


@settings(max_examples=200, deadline=None)
@given(ACTIONS, st.integers(1, 3), st.integers(0, 3), st.integers(1, 3))
def test_every_group_ends_once_and_every_batch_keeps_the_bounds(
    actions: list[tuple[Any, ...]], groups_per_batch: int, max_staleness: int, lookahead: int
) -> None:
    stage = make(groups_per_batch=groups_per_batch, max_staleness=max_staleness, lookahead=lookahead)
    trained = 0
    for action in actions:
        match action:
            case ("group", lag, tokens):
                stage.deliver(ready(len(stage.log), max(0, trained - lag), tokens))
            case ("train",):
                if trained < len(stage.batches):
                    stage.train(trained)
                    trained += 1
            case _:
                stage.crash()
        assert len(stage.batches) - trained <= lookahead

    assert [batch.batch for batch in stage.batches] == list(range(len(stage.batches)))
    ended = Counter([group for batch in stage.batches for group in batch.groups] + [d.group_id for d in stage.drops])
    assert ended == dict.fromkeys((f"p.{offset}" for offset in stage.finished), 1)
    for batch in stage.batches:
        assert len(batch.groups) == groups_per_batch
        assert batch.staleness_max <= max_staleness
    waiting = len(stage.log) - len(stage.finished)
    assert waiting < groups_per_batch or len(stage.batches) - trained == lookahead


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.booleans()), max_size=40), st.integers(0, 3))
def test_no_group_is_planned_twice_when_the_broker_forgets_what_was_committed(
    groups: list[tuple[int, bool, bool]], max_staleness: int
) -> None:
    stage = make(max_staleness=max_staleness, lookahead=2)
    for name, (age, trains, forgets) in enumerate(groups):
        stage.deliver(ready(name, version=max(0, len(stage.steps) - age)))
        if trains and len(stage.batches) > len(stage.steps):
            stage.train(len(stage.steps))
        if forgets:
            stage.crash(offsets_lost=True)
    planned = Counter(group for batch in stage.batches for group in batch.groups)
    assert all(times == 1 for times in planned.values())
    assert [batch.batch for batch in stage.batches] == list(range(len(stage.batches)))
