"""Steps, weights and applications that are written again: the dispatcher asks for what it would have asked for."""

from hypothesis import given
from hypothesis import strategies as st

from producers.dispatcher.dispatch import Dispatch
from schemas import Event, Ref
from tests.builders import step_completed, weights_published
from tests.producers.dispatcher.world import applied, configured, planned, prompts, ready, started

BATCHES, GROUPS = 6, 2


def trained(batch: int) -> tuple[Event, ...]:
    """What the learner and a producer write about a batch."""
    return (
        step_completed(batch + 1, batch=batch, batch_ref=Ref("batches", 0, batch), version=batch + 1),
        weights_published(batch + 1),
        applied("producer-0", batch + 1),
    )


def asked_for(repeats: dict[int, int]) -> list[tuple[str, int | None]]:
    """Groups and what they were asked for with, where batch n is followed by the last repeats[n] ones once more."""
    settings = configured(groups_per_batch=GROUPS, max_staleness=1)
    dispatch = started(Dispatch(settings, prompts(30), [], run_seed=0))
    asked: list[tuple[str, int | None]] = []
    waiting: list[str] = []
    for batch in range(BATCHES):
        for request in dispatch.due(0.0):
            asked.append((request.group_id, request.sequence))
            waiting.append(request.group_id)
            dispatch.on_event(ready(request))
        groups, waiting = waiting[:GROUPS], waiting[GROUPS:]
        dispatch.on_event(planned(batch, groups))
        for event in trained(batch):
            dispatch.on_event(event)
        for again in range(max(0, batch - repeats.get(batch, 0) + 1), batch + 1):
            # A producer that restarts says once more what it holds by now.
            for event in trained(again)[:2]:
                dispatch.on_event(event)
        dispatch.on_event(trained(batch)[2])
        assert dispatch.steps == batch + 1
    return asked


@given(st.dictionaries(st.integers(0, BATCHES - 1), st.integers(1, 4)))
def test_steps_and_weights_recorded_again_change_no_request(repeats: dict[int, int]) -> None:
    assert asked_for(repeats) == asked_for({})
    assert len(asked_for({})) == GROUPS * (BATCHES + 1)


def test_an_old_step_recorded_again_is_no_step_back() -> None:
    dispatch = Dispatch(configured(), prompts(30), [], run_seed=0)
    for batch in (0, 1, 2, 0, 1):
        for event in trained(batch):
            dispatch.on_event(event)
    assert dispatch.steps == 3
