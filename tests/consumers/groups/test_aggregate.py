"""The aggregator: every rollout ends exactly once, whatever is repeated, late, reordered or crashes."""

from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers.groups.settings import GroupSettings
from schemas import (
    GroupDropped,
    GroupEvaluated,
    GroupReady,
    Ref,
    RolloutDisposed,
    RolloutScored,
)
from streams.errors import Poison
from streams.stages.processor import ProcessResult
from tests.builders import record_at, step_completed
from tests.consumers.groups.stage import Stage, ends_of, request, score


def test_a_complete_group_closes_at_once_and_finishes_its_scores() -> None:
    stage = Stage(GroupSettings())
    assert stage.deliver(score(index=0, reward=1.0)) == ProcessResult()
    result = stage.deliver(score(index=1, reward=0.0))
    assert [ref.offset for ref in result.finished] == [0, 1]
    (output,) = result.outputs
    assert isinstance(output.event, GroupReady)
    assert (output.topic, output.key) == ("groups", "p.0")
    assert [record.offset for record in output.links] == [0, 1]
    assert stage.processor.next_time_s() is None
    assert stage.processor.waiting(0.0) == []


def test_the_same_rollout_scored_again_is_finished_without_a_word() -> None:
    stage = Stage(GroupSettings())
    stage.deliver(score(index=0))
    assert stage.deliver(score(index=0, reward=0.0)) == ProcessResult(finished=(Ref("scores", 0, 1),))
    stage.deliver(score(index=1, reward=0.0))
    assert stage.deliver(score(index=1)) == ProcessResult(finished=(Ref("scores", 0, 3),))


def test_a_later_attempt_is_a_duplicate_once_also_after_a_crash() -> None:
    stage = Stage(GroupSettings())
    stage.deliver(score(index=0))
    stage.deliver(score(index=0, attempt=1, reward=0.0))
    stage.crash()
    assert stage.deliver(score(index=0, attempt=1, reward=0.0)).outputs == ()
    stage.deliver(score(index=1, reward=0.0))
    ready = stage.events[-1]
    assert isinstance(ready, GroupReady)
    assert [(m.rollout.offset % 10, m.reward) for m in ready.members] == [(0, 1.0), (0, 0.0)]
    assert Counter(end for _, end in ends_of(stage.events)) == {"ready": 2, "duplicate": 1}


def test_a_straggler_is_a_duplicate_while_the_group_is_remembered() -> None:
    stage = Stage(GroupSettings(remember_s=60))
    stage.deliver(score(index=0, deadline_s=10.0))
    stage.pass_time(11)
    assert [end for _, end in ends_of(stage.events)] == ["expired"]
    stage.crash()
    stage.deliver(score(index=1, deadline_s=10.0))
    assert [end for _, end in ends_of(stage.events)] == ["expired", "duplicate"]


def test_a_backlog_past_its_deadline_is_still_collected() -> None:
    stage = Stage(GroupSettings(settle_s=5.0), now_s=1000.0)
    stage.deliver(score(index=0, deadline_s=10.0))
    stage.pass_time(4.0)
    stage.deliver(score(index=1, reward=0.0, deadline_s=10.0))
    assert isinstance(stage.events[-1], GroupReady)


def test_says_what_it_waits_for() -> None:
    stage = Stage(GroupSettings(), now_s=3600.0)
    stage.deliver(score("p.0", deadline_s=7200.0))
    stage.deliver(request("o.0", requested_s=3000.0))
    stage.pass_time(41.0)
    stage.deliver(score("q.0", deadline_s=5400.0))
    assert stage.processor.waiting(3641.0) == [
        "waits for 1 of 2 rollouts of group p.0 since 41 s and for 3559 s more; 2 other groups are open",
    ]


def test_what_does_not_belong_is_poison() -> None:
    stage = Stage(GroupSettings())
    with pytest.raises(Poison, match=r"rollout p\.0\.2 has index 2 in a group of 2"):
        stage.deliver(score(index=2))
    step = step_completed(0)
    with pytest.raises(Poison, match="StepCompleted is not RolloutScored"):
        stage.processor.on_event(step, record_at("scores"), 0.0)


def test_a_group_of_which_nothing_comes_ends_as_expired() -> None:
    stage = Stage(GroupSettings(unheard_s=60.0))
    assert stage.deliver(request("p.0", requested_s=5.0)) == ProcessResult()
    assert stage.processor.waiting(46.0) == [
        "waits for the first of 2 rollouts of group p.0 since 46 s and for 119 s more"
    ]
    stage.crash()
    stage.pass_time(164.0)
    assert stage.events == []
    stage.pass_time(1.5)
    (end,) = stage.events
    assert isinstance(end, GroupDropped)
    assert (end.group_id, end.prompt_id, end.task, end.reason) == ("p.0", "p", "sums", "expired")
    assert (end.members, end.requested_s) == ((), 5.0)
    assert stage.finished == {0}
    stage.crash()
    stage.deliver(score(index=0, requested_s=5.0))
    assert [end for _, end in ends_of(stage.events[1:])] == ["expired"]


def test_a_request_is_finished_with_its_group_and_a_second_one_at_once() -> None:
    stage = Stage(GroupSettings())
    stage.deliver(score(index=0))
    assert stage.deliver(request()) == ProcessResult()
    assert stage.deliver(request()).finished == (Ref("prompts", 0, 2),)
    result = stage.deliver(score(index=1, reward=0.0))
    assert set(result.finished) == {Ref("scores", 0, 0), Ref("scores", 0, 3), Ref("prompts", 0, 1)}
    assert stage.deliver(request()).finished == (Ref("prompts", 0, 4),)
    assert stage.processor.next_time_s() is None


def test_the_first_score_gives_an_unheard_group_its_ordinary_deadline() -> None:
    stage = Stage(GroupSettings(unheard_s=60.0))
    stage.deliver(request(samples=3, deadline_s=100.0))
    assert stage.processor.next_time_s() == 160.0
    stage.deliver(score(index=0, samples=3))
    assert stage.processor.next_time_s() == 100.0
    stage.pass_time(100.0)
    (end,) = stage.events
    assert isinstance(end, GroupDropped)
    assert stage.finished == {0, 1}


def test_a_held_back_group_is_waited_for_longer_and_ends_as_evaluated() -> None:
    stage = Stage(GroupSettings(longest_s=1000.0))
    stage.deliver(request(purpose="evaluate", evaluation=7))
    stage.pass_time(999.0)
    assert stage.events == []
    stage.pass_time(1.0)
    (end,) = stage.events
    assert isinstance(end, GroupEvaluated)
    assert (end.evaluation, end.members, end.pass_rate) == (7, (), None)


def test_an_unheard_group_does_not_expire_while_older_scores_are_still_read() -> None:
    stage = Stage(GroupSettings(unheard_s=10.0, settle_s=5.0), now_s=1000.0)
    stage.deliver(request(requested_s=0.0))
    stage.pass_time(9.0)
    stage.written_s[1] = 50.0  # a backlog: written long before it is read
    stage.deliver(score("q.0", deadline_s=1e6))
    stage.pass_time(2.0)
    assert stage.events == []
    stage.written_s[2] = stage.written_s[3] = 51.0
    stage.deliver(score(index=0))
    stage.deliver(score(index=1, reward=0.0))
    assert isinstance(stage.events[-1], GroupReady)


@pytest.mark.parametrize(("slow_s", "ends_s"), [(10.0, 115.0), (1e9, 300.0)])
def test_a_slow_clock_of_a_writer_keeps_no_unheard_group_open_for_ever(slow_s: float, ends_s: float) -> None:
    """Scores of other groups come all the time, stamped by a clock that is 10 s slow, or stands in the year 1970."""
    stage = Stage(GroupSettings(settle_s=5.0, unheard_s=1.0, longest_s=300.0))
    stage.deliver(request("p.0"))
    ended: list[GroupDropped] = []
    while not ended:
        assert stage.now_s <= ends_s
        stage.written_s[len(stage.log)] = stage.now_s - slow_s
        stage.deliver(score(f"q{stage.now_s:g}.0", deadline_s=1e6))
        stage.pass_time(1.0)
        ended = [event for event in stage.events if isinstance(event, GroupDropped) and event.group_id == "p.0"]
    assert not ended[0].members


def test_a_straggler_of_a_forgotten_group_never_opens_it_again() -> None:
    stage = Stage(GroupSettings(remember_s=60, min_samples=2))
    for index, reward in enumerate([0.0, 1.0]):
        stage.deliver(score("p.0", index, reward=reward, requested_s=5.0))
    stage.pass_time(3600.0)
    for group, index, requested_s in [("p.0", 0, 5.0), ("p.0", 1, 5.0), ("o.0", 0, 4.0), ("q.0", 0, 3601.0)]:
        stage.deliver(score(group, index, attempt=1, requested_s=requested_s, deadline_s=1e6))
    assert [type(event).__name__ for event in stage.events] == ["GroupReady"] + ["RolloutDisposed"] * 3
    assert [end for _, end in ends_of(stage.events)] == ["ready", "ready", "expired", "expired", "expired"]


def test_a_group_older_than_anything_remembered_ends_when_its_request_is_read_again() -> None:
    stage = Stage(GroupSettings(remember_s=60))
    stage.deliver(request("o.0", requested_s=1.0))
    stage.deliver(score("o.0", requested_s=1.0, deadline_s=1e6))
    stage.pass_time(70.0)
    stage.crash(known_since_s=10.0)
    assert [type(event).__name__ for event in stage.events] == ["GroupDropped", "RolloutDisposed"]
    assert [end for _, end in ends_of(stage.events)] == ["expired"]
    assert stage.finished == {0, 1}


def test_a_known_request_is_waited_for_however_old_it_is() -> None:
    stage = Stage(GroupSettings(remember_s=60, unheard_s=1e6, longest_s=1e7))
    stage.deliver(request("o.0", requested_s=1.0))
    for index in range(2):
        stage.deliver(score("p.0", index, requested_s=5.0))
    stage.pass_time(3600.0)
    for index in range(2):
        stage.deliver(score("o.0", index, reward=float(index), requested_s=1.0, deadline_s=1e6))
    assert isinstance(stage.events[-1], GroupReady)


@pytest.mark.parametrize("lost", ["memory", "offsets"])
def test_no_group_is_ready_twice_when_what_was_known_is_lost(lost: str) -> None:
    """The recall's horizon has passed, or a broker forgot what was committed: everything is delivered again."""
    stage = Stage(GroupSettings(remember_s=60), now_s=10.0)
    for group in ("p.0", "p.1", "p.2"):
        stage.deliver(request(group, requested_s=stage.now_s))
        for index in range(2):
            stage.deliver(score(group, index, reward=float(index), requested_s=stage.now_s))
        stage.pass_time(50.0)
    assert len(stage.events) == 3
    again = [event for event in stage.log if isinstance(event, RolloutScored)]
    stage.crash(known_since_s=stage.now_s - 60, offsets_lost=lost == "offsets")
    for event in again:
        stage.deliver(msgspec.structs.replace(event, attempt=1, rollout=event.rollout._replace(partition=1)))
    ready = Counter(event.group_id for event in stage.events if isinstance(event, GroupReady))
    assert ready == {"p.0": 1, "p.1": 1, "p.2": 1}


DELIVERIES = st.tuples(
    st.just("deliver"),
    st.sampled_from(["p.0", "p.1", "q.0"]),
    st.integers(0, 2),
    st.integers(0, 2),
    st.sampled_from([None, 0.0, 0.5, 1.0]),
)
ACTIONS = st.lists(
    st.one_of(
        DELIVERIES,
        DELIVERIES,
        DELIVERIES,
        st.tuples(st.just("request"), st.sampled_from(["p.0", "p.1", "q.0"])),
        st.tuples(st.just("time"), st.integers(1, 40)),
        st.tuples(st.just("crash")),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(ACTIONS, st.integers(2, 3))
def test_every_scored_rollout_ends_exactly_once(actions: list[tuple[Any, ...]], min_samples: int) -> None:
    stage = Stage(GroupSettings(min_samples=min_samples, remember_s=1e6))
    for action in actions:
        match action:
            case ("deliver", group_id, index, attempt, reward):
                purpose = "evaluate" if group_id == "q.0" else "train"
                stage.deliver(score(group_id, index, attempt, reward, samples=3, purpose=purpose))
            case ("request", group_id):
                purpose = "evaluate" if group_id == "q.0" else "train"
                stage.deliver(request(group_id, samples=3, purpose=purpose))
            case ("time", seconds):
                stage.pass_time(seconds)
            case _:
                stage.crash()
    stage.pass_time(1000)
    stage.pass_time(100_000)

    assert stage.finished == set(range(len(stage.log)))
    # Of a group that ended without a rollout `expired` is said each time: it counts where nothing else was said.
    late = [event for event in stage.events if isinstance(event, RolloutDisposed) and event.disposition == "expired"]
    ends = ends_of([event for event in stage.events if event not in late])
    scored = {event.rollout for event in stage.log if isinstance(event, RolloutScored)}
    assert Counter(ref for ref, _ in ends) + Counter({end.rollout for end in late}) == dict.fromkeys(scored, 1)
    closings = [
        event.group_id for event in stage.events if isinstance(event, GroupReady | GroupDropped | GroupEvaluated)
    ]
    assert len(closings) == len(set(closings))
    assert set(closings) == {event.group_id for event in stage.log}
    assert_first_scored_attempts_win(stage)


def assert_first_scored_attempts_win(stage: Stage) -> None:
    """A group's member is its rollout's first score on the log, with that score's reward; the rest are duplicates."""
    first = {event.rollout_id: event for event in reversed(stage.log) if isinstance(event, RolloutScored)}
    ended = [event for event in stage.events if isinstance(event, GroupReady | GroupDropped | GroupEvaluated)]
    unheard = {event.group_id for event in ended if not event.members}
    for event in stage.events:
        match event:
            case GroupReady() | GroupDropped() | GroupEvaluated():
                for member in event.members:
                    assert (member.rollout, member.reward) == (
                        first[member.rollout_id].rollout,
                        first[member.rollout_id].reward,
                    )
                    assert (member.disposition == "invalid") == (not first[member.rollout_id].valid)
            case RolloutDisposed():
                assert event.disposition == ("expired" if event.group_id in unheard else "duplicate")
            case _:
                raise AssertionError(event)
