"""The dispatcher's pure state against a small world that drops, batches, trains and kills."""

import random
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from producers.dispatcher.admission import Admission
from producers.dispatcher.curriculum import UniformCurriculum
from producers.dispatcher.dispatch import Dispatch
from producers.dispatcher.evaluations import WeightVersions
from producers.dispatcher.length_estimator import LengthEstimate
from producers.dispatcher.settings import DispatcherSettings
from producers.dispatcher.sources import JsonlSource
from schemas import (
    DeadLetter,
    DeadLetterPurged,
    DeadLetterReplayed,
    Event,
    GroupRequested,
    Ref,
    WeightsRefused,
    decode,
    encode,
)
from schemas.events.earlier_forms import AnyWeightsApplied
from tests.builders import step_completed, weights_published
from tests.producers.dispatcher.world import (
    World,
    configured,
    dropped,
    of,
    planned,
    prompts,
    ready,
    started,
)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    train=st.integers(1, 12),
    held=st.integers(0, 3),
    every=st.integers(0, 3),
    staleness=st.integers(0, 2),
    crash=st.floats(0, 0.2),
)
def test_through_crashes_every_group_is_asked_for_once_and_the_window_holds(
    seed: int, train: int, held: int, every: int, staleness: int, crash: float
) -> None:
    rng = random.Random(seed)
    setup = configured(groups_per_batch=3, max_staleness=staleness, evaluate_every=every)
    window = setup.window_groups
    sources = prompts(train), prompts(held, "held")
    world, dispatch = World(rng, 3), started(Dispatch(setup, *sources, run_seed=seed))
    for tick in range(80):
        requests = dispatch.due(float(tick))
        if rng.random() < crash:
            # Killed before the transaction: nothing of it is on the log.
            dispatch = Dispatch(setup, *sources, run_seed=seed)
            for event in world.replayed():
                dispatch.on_event(event)
            dispatch.rebuilt()
            assert dispatch.admission.outstanding == world.slots
            assert dispatch.evaluating.outstanding == len(of(world.open, "evaluate"))
            continue
        world.request(requests)
        assert dispatch.admission.outstanding == world.slots == window, "a free slot is filled at once, and no more"
        # Its own requests come back from the log as well, also later than what became of them.
        events = [*requests, *world.step()]
        rng.shuffle(events)
        for event in events:
            dispatch.on_event(event)
    asked = [event for event in world.log["prompts"] if isinstance(event, GroupRequested)]
    assert len({request.group_id for request in asked}) == len(asked)
    assert [request.sequence for request in asked] == list(range(len(asked)))
    visits = {p.prompt_id: [r.visit for r in asked if r.prompt_id == p.prompt_id] for p in (*sources[0], *sources[1])}
    assert all(sorted(seen) == list(range(len(seen))) for seen in visits.values()), "visits count up without a hole"
    counts = [len(visits[p.prompt_id]) for p in sources[0]]
    assert max(counts) - min(counts) <= 1, "every prompt once an epoch"
    rounds = [r.evaluation for r in asked if r.purpose == "evaluate"]
    assert all(rounds.count(number) == held for number in set(rounds)) and (not held or 0 in rounds)


def test_the_order_is_the_seeds_alone_and_differs_between_epochs() -> None:
    ids = [f"p{i}" for i in range(50)]
    first = UniformCurriculum(ids, seed=1).choose(100, 8)
    assert first == UniformCurriculum(list(reversed(ids)), seed=1).choose(100, 8)
    assert first != UniformCurriculum(ids, seed=2).choose(100, 8)
    assert sorted(i for i, _, _ in first[:50]) == sorted(ids) == sorted(i for i, _, _ in first[50:])
    assert [i for i, _, _ in first[:50]] != [i for i, _, _ in first[50:]]
    assert {visit for _, visit, _ in first[:50]} == {0} and {visit for _, visit, _ in first[50:]} == {1}


def test_the_order_resumes_where_the_log_ends_also_when_old_requests_are_gone() -> None:
    ids = [f"p{i}" for i in range(10)]
    whole = UniformCurriculum(ids, seed=3).choose(50, 1)
    for cut in range(40):
        for oldest in (0, max(0, cut - 12), max(0, cut - 1)):
            resumed = UniformCurriculum(ids, seed=3)
            for prompt_id, visit, _ in whole[oldest:cut]:
                resumed.visited(prompt_id, visit)
            chosen = resumed.choose(10, 1)
            if cut - oldest >= 10 or oldest == 0:
                assert chosen == whole[cut : cut + 10]
            used = {(i, visit) for i, visit, _ in whole[oldest:cut]}
            assert not used & {(i, visit) for i, visit, _ in chosen}


def test_refused_prompts_are_left_out_and_none_left_means_none_chosen() -> None:
    curriculum = UniformCurriculum(["a", "b"], seed=0)
    curriculum.refused("a")
    assert curriculum.choose(3, 1) == [("b", 0, 1), ("b", 1, 1), ("b", 2, 1)]
    curriculum.refused("b")
    curriculum.refused("no prompt of the source")
    assert curriculum.choose(3, 1) == []


def test_a_group_without_outcome_frees_its_slot_after_deadline_and_grace_by_name() -> None:
    setup = configured(groups_per_batch=1, max_staleness=1, group_timeout_s=100.0, outcome_grace_s=20.0)
    dispatch = started(Dispatch(setup, prompts(5), [], run_seed=0))
    first, second = dispatch.due(0.0)
    dispatch.on_event(ready(second))
    assert dispatch.next_time_s() == 120.0 and dispatch.due(119.0) == []
    dispatch.give_up(119.9)
    assert dispatch.notes() == []
    dispatch.give_up(120.0)
    (note,) = dispatch.notes()
    assert first.group_id in note and "20 s after its deadline" in note and dispatch.notes() == []
    assert len(dispatch.due(121.0)) == 1, "the complete group keeps its slot, whatever its deadline was"
    dispatch.on_event(dropped(first))
    assert dispatch.admission.free() == 0, "a late outcome frees nothing a second time"


def test_a_step_before_its_plan_and_twice_frees_the_slots_once() -> None:
    admission = Admission(window_groups=2, grace_s=1.0)
    admission.rebuilt()
    for name in "ab":
        admission.requested(name, 10.0)
    admission.trained(0)
    assert admission.outstanding == 2
    admission.planned(0, ("a", "b"))
    admission.trained(0)
    assert admission.outstanding == 0 and admission.free() == 2


def test_a_step_read_ahead_of_its_plan_while_the_state_is_rebuilt_frees_the_slots() -> None:
    admission = Admission(window_groups=2, grace_s=1.0)
    for name in "ab":
        admission.requested(name, 10.0)
    admission.trained(0)
    admission.rebuilt()
    admission.planned(0, ("a", "b"))
    assert admission.outstanding == 0 and admission.free() == 2


def test_no_training_prompt_beyond_the_last_planned_batch() -> None:
    setup = configured(groups_per_batch=2, max_staleness=1, max_steps=1)
    dispatch = started(Dispatch(setup, prompts(9), [], run_seed=0))
    first, second, third, fourth = dispatch.due(0.0)
    dispatch.on_event(dropped(third))
    assert len(dispatch.due(1.0)) == 1
    for request in (first, second):
        dispatch.on_event(ready(request))
    dispatch.on_event(planned(0, [first.group_id, second.group_id]))
    dispatch.on_event(dropped(fourth))
    assert dispatch.due(2.0) == [] and not dispatch.finished()
    dispatch.on_event(step_completed(0))
    assert dispatch.due(3.0) == [] and dispatch.admission.outstanding == 1
    # Without held-back prompts too: a learner that was killed in between has not published what it trained.
    assert not dispatch.finished() and dispatch.waiting() == ["for weights 1 to be published"]
    dispatch.on_event(weights_published(1))
    assert dispatch.finished() and dispatch.waiting() == []


def test_a_batch_that_somebody_else_wrote_does_not_end_the_asking() -> None:
    setup = configured(groups_per_batch=1, max_staleness=0, max_steps=3)
    dispatch = started(Dispatch(setup, prompts(9), [], run_seed=0))
    for number in range(2):
        (request,) = dispatch.due(0.0)
        dispatch.on_event(ready(request))
        dispatch.on_event(planned(number, [request.group_id]))
        dispatch.on_event(planned(4000, ["stranger"]))
        dispatch.on_event(step_completed(number))
        dispatch.on_event(weights_published(number + 1))
    assert len(dispatch.due(0.0)) == 1


def test_requests_carry_what_was_configured_and_the_newest_weights() -> None:
    setup = configured(samples=4, group_timeout_s=50.0)
    dispatch = Dispatch(setup, prompts(3), [], run_seed=0)
    dispatch.on_event(weights_published(7))
    dispatch.on_event(weights_published(6))
    request = started(dispatch).due(1000.0)[0]
    assert (request.samples, request.deadline_s, request.time_s, request.version) == (4, 1050.0, 1000.0, 7)
    assert request.sampling.max_tokens == 1024 and request.prompt is not None and request.purpose == "train"


def test_a_request_that_no_producer_takes_ends_its_group_and_its_prompt() -> None:
    dispatch = started(Dispatch(configured(groups_per_batch=1, max_staleness=0), prompts(2), [], run_seed=0))
    (request,) = dispatch.due(0.0)
    dead = DeadLetter(
        source=Ref("prompts", 0, 0), stage="producer", error="prompt of 9999 tokens", data=encode(request), time_s=1.0
    )
    dispatch.on_event(dead)
    assert "prompt of 9999 tokens" in dispatch.notes()[0]
    (other,) = dispatch.due(1.0)
    dispatch.on_event(dropped(other))
    (again,) = dispatch.due(2.0)
    assert other.prompt_id == again.prompt_id != request.prompt_id
    for broken in (b"\xc1", encode(ready(request))):
        dispatch.on_event(
            DeadLetter(source=Ref("prompts", 0, 0), stage="producer", error="no event", data=broken, time_s=1.0)
        )


def refused(request: GroupRequested, offset: int, **fields: Any) -> DeadLetter:
    return DeadLetter(
        source=Ref("prompts", 0, offset), stage="producer", error="too long", data=encode(request), time_s=1.0, **fields
    )


def test_a_refusal_does_not_outlast_the_settings_that_caused_it() -> None:
    """A minute with a tiny max_model_len, and the run trained on one prompt of thirty for good."""
    setup = configured(groups_per_batch=4, max_staleness=0)
    first = started(Dispatch(setup, prompts(4), [], run_seed=0, config_digest="small"))
    asked = first.due(0.0)
    letters = [refused(request, number, config_digest="small") for number, request in enumerate(asked[:3])]
    for letter in letters:
        first.on_event(letter)
    assert first.refused_prompts == 3
    assert sum("prompts were refused" in note for note in first.notes()) == 2, "once half, once a quarter is left"
    for digest, out in (("small", 3), ("large", 0), (None, 3)):
        successor = Dispatch(setup, prompts(4), [], run_seed=0, config_digest=digest)
        history: tuple[Event, ...] = (*letters, *asked)
        for event in history:
            successor.on_event(event)
        successor.rebuilt()
        assert successor.refused_prompts == out
        chosen = {request.prompt_id for request in successor.due(2.0)}
        assert len(chosen) == (1 if out else 3), "the fourth prompt's group is outstanding, and with 3 out its next one"


def test_a_refusal_is_lifted_when_its_request_is_put_back() -> None:
    setup = configured(groups_per_batch=2, max_staleness=0)
    first, second = started(Dispatch(setup, prompts(2), [], run_seed=0)).due(0.0)
    letters = refused(first, 0), refused(second, 1)
    back = DeadLetterReplayed(source=letters[0].source, stage="producer", replayed=Ref("prompts", 0, 9), time_s=2.0)
    orders: tuple[tuple[Event, ...], ...] = ((*letters, back), (back, *letters))
    for order in orders:
        dispatch = Dispatch(setup, prompts(2), [], run_seed=0)
        for event in (first, second, *order):
            dispatch.on_event(event)
        dispatch.rebuilt()
        assert dispatch.refused_prompts == 1
        assert {request.prompt_id for request in dispatch.due(2.0)} == {first.prompt_id}
    dispatch.on_event(refused(first, 9))
    assert dispatch.refused_prompts == 2, "refused again, as the record that was put back"
    assert dispatch.waiting()[0].startswith("for a prompt: every one of the source was refused")


def test_a_purged_dead_letter_still_refuses_its_prompt_after_a_restart() -> None:
    """Of the dead letter only its source and its record's key are left."""
    setup = configured(groups_per_batch=2, max_staleness=0)
    first, second = started(Dispatch(setup, prompts(2), [], run_seed=0)).due(0.0)
    purged = DeadLetterPurged(
        source=Ref("prompts", 0, 0), stage="producer", error="it kills the engine", refused_s=1.0, time_s=2.0,
        key=first.group_id.encode(),
    )  # fmt: skip
    successor = Dispatch(setup, prompts(2), [], run_seed=0)
    for event in (purged, first, second, dropped(second), msgspec.structs.replace(purged, key=b"\xff.0")):
        successor.on_event(event)
    successor.rebuilt()
    assert successor.admission.outstanding == 0
    assert {request.prompt_id for request in successor.due(2.0)} == {second.prompt_id}


def test_what_an_earlier_version_wrote_of_a_producer_counts_as_its_application() -> None:
    """Compaction may have left a refusal of the earlier form alone; a refusal of today says nothing of the version."""
    dispatch = Dispatch(configured(groups_per_batch=1, max_staleness=0), prompts(2), [], run_seed=0)
    dispatch.on_event(WeightsRefused(producer_id="new", version=3, time_s=1.0))
    assert dispatch._versions.behind(9) == []
    earlier = AnyWeightsApplied(producer_id="old", version=2, time_s=1.0, refused=3)
    dispatch.on_event(decode(msgspec.msgpack.encode(earlier)))
    assert dispatch._versions.behind(3) == ["old"] and dispatch._versions.behind(2) == []


def test_longest_first_once_lengths_are_known() -> None:
    setup = configured(groups_per_batch=4, max_staleness=0)
    dispatch = started(Dispatch(setup, prompts(4), [], run_seed=0))
    first = dispatch.due(0.0)
    assert all(request.predicted_tokens is None for request in first)
    lengths = dict(zip((request.prompt_id for request in first), (7, 40, 3, 21), strict=True))
    for request in first:
        dispatch.on_event(ready(request, lengths[request.prompt_id]))
    dispatch.on_event(planned(0, [request.group_id for request in first]))
    dispatch.on_event(step_completed(0))
    second = dispatch.due(1.0)
    assert [request.predicted_tokens for request in second] == [40, 21, 7, 3]
    assert all(lengths[request.prompt_id] == request.predicted_tokens for request in second)


def test_an_unseen_prompt_is_predicted_from_its_task() -> None:
    estimate = LengthEstimate()
    assert estimate.predict("x", "t") is None
    estimate.observe(ready(started(Dispatch(configured(), prompts(1), [], 0)).due(0.0)[0], tokens=12))
    assert estimate.predict("x", "t") == 12 and estimate.predict("x", "other") is None


def test_a_version_that_is_not_generated_with_yet_holds_its_part_of_the_window() -> None:
    """What is asked for before weights are applied is generated with old ones: it must not be more than can be used."""
    chosen = DispatcherSettings(source=JsonlSource(path="unused"), groups_per_batch=4, max_staleness=2, samples=2)
    assert [chosen.held_groups(unapplied) for unapplied in (0, 1, 2, 5)] == [0, 4, 8, 8]
    versions = WeightVersions()
    assert versions.unapplied(3) == 0, "no producer is known yet"
    versions.apply("producer-0", 1)
    versions.apply("producer-1", 0)
    assert versions.unapplied(3) == 2
    admission = Admission(chosen.window_groups, grace_s=1.0)
    for number in range(5):
        admission.requested(f"g{number}", 10.0)
    assert [admission.free(chosen.held_groups(unapplied)) for unapplied in (0, 1, 2)] == [7, 3, 0]
