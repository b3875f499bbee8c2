"""Rounds of held-back prompts: when they come, and what they wait for."""

import msgspec

from producers.dispatcher.dispatch import Dispatch
from producers.dispatcher.evaluations import Evaluations
from tests.builders import step_completed, weights_published
from tests.producers.dispatcher.world import (
    applied,
    configured,
    evaluated,
    of,
    planned,
    prompts,
    ready,
    started,
)


def test_held_back_rounds_come_first_then_every_so_many_steps_and_last() -> None:
    setup = configured(groups_per_batch=1, max_staleness=0, evaluate_every=2, evaluate_samples=3, max_steps=5)
    dispatch = started(Dispatch(setup, prompts(4), prompts(2, "held"), run_seed=0))
    rounds: dict[int, int] = {}
    requests = dispatch.due(0.0)
    assert [r.purpose for r in requests] == ["evaluate", "evaluate", "train"]
    assert all(r.samples == 3 for r in of(requests, "evaluate"))
    for batch in range(5):
        (training,) = of(requests, "train")
        rounds |= {r.evaluation: batch for r in of(requests, "evaluate") if r.evaluation is not None}
        dispatch.on_event(ready(training))
        dispatch.on_event(planned(batch, [training.group_id]))
        dispatch.on_event(step_completed(batch))
        dispatch.on_event(weights_published(batch + 1))
        requests = dispatch.due(float(batch))
    assert rounds == {0: 0, 2: 2, 4: 4} and requests != []
    assert {r.evaluation for r in requests} == {5}, "no producer is known, so nobody is waited for"
    assert dispatch.due(100.0) == [], "a round is asked for once"


def last_round(producers: dict[str, int], newest: int) -> Dispatch:
    setup = configured(groups_per_batch=1, evaluate_every=0, max_steps=1, final_evaluation_wait_s=30.0)
    dispatch = Dispatch(setup, prompts(4), prompts(2, "held"), run_seed=0)
    started(dispatch).due(0.0)
    for event in (planned(0, ()), step_completed(0), weights_published(newest)):
        dispatch.on_event(event)
    for producer, version in producers.items():
        dispatch.on_event(applied(producer, version))
    return dispatch


def test_the_last_round_waits_for_every_producer_to_hold_the_last_weights() -> None:
    dispatch = last_round({"producer-0": 0, "producer-1": 1}, newest=1)
    assert dispatch.due(10.0) == []
    assert dispatch.waiting() == ["for weights 1 to be applied by producer-0 before the last held-back round"]
    dispatch.on_event(applied("producer-0", 1))
    requests = dispatch.due(11.0)
    assert [r.evaluation for r in requests] == [1, 1] and {r.visit for r in requests} == {1}
    assert dispatch.notes() == [] and not dispatch.finished()
    # Two of round 0 are outstanding as well.
    for prompt, visit in ((request.prompt_id, visit) for request in requests for visit in (0, 1)):
        assert not dispatch.finished()
        dispatch.on_event(evaluated(msgspec.structs.replace(requests[0], group_id=f"{prompt}.{visit}")))
    assert dispatch.finished()


def test_the_last_round_does_not_wait_for_ever() -> None:
    dispatch = last_round({"producer-0": 0}, newest=0)
    assert dispatch.due(10.0) == [] and dispatch.next_time_s() == 40.0
    requests = dispatch.due(40.0)
    assert [r.evaluation for r in requests] == [1, 1]
    (note,) = dispatch.notes()
    assert "weights 1 are not applied (the newest published are 0) after 30 s" in note


def test_a_round_that_a_crash_cut_in_two_is_completed_and_a_missed_one_skipped() -> None:
    rounds = Evaluations(["a", "b", "c"], every=2, max_steps=None)
    rounds.visited("a", 0)
    rounds.requested(0, "a")
    assert rounds.due(1, False) == (0, [("b", 0), ("c", 0)])
    assert Evaluations(["a"], every=0, max_steps=9).due(5, False) is None
    assert rounds.due(7, False) == (6, [("a", 1), ("b", 0), ("c", 0)])
