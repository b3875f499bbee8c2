"""Steps that a resumed learner writes again, in any order after the first time: the plans stay as they are."""

from hypothesis import given
from hypothesis import strategies as st

from consumers.batches.batcher import Batcher
from consumers.batches.settings import BatchSettings
from schemas import BatchPlanned, GroupReady, Member, Ref, StepCompleted
from tests.builders import group_ready, record_at, step_completed

GROUPS, GROUPS_PER_BATCH, LOOKAHEAD = 24, 2, 2


def ready(number: int) -> GroupReady:
    members = tuple(
        Member(
            rollout_id=f"p.{number}.{index}", rollout=Ref("rollouts", 0, 2 * number + index), reward=float(index),
            advantage=2.0 * index - 1, prompt_tokens=3, response_tokens=4,
        )
        for index in range(2)
    )  # fmt: skip
    return group_ready(f"p.{number}", *members)


def step(batch: int) -> StepCompleted:
    return step_completed(batch + 1, batch=batch, batch_ref=Ref("batches", 0, batch), version=batch + 1)


def plans(repeats: dict[int, int]) -> list[tuple[int, tuple[str, ...]]]:
    """Batches and their groups, where step n is followed by the steps n - repeats[n] + 1 to n once more."""
    settings = BatchSettings(groups_per_batch=GROUPS_PER_BATCH, lookahead=LOOKAHEAD)
    batcher = Batcher(settings, (1.0, 0.1))
    turns = [batcher.on_event(ready(number), record_at("groups", number), 0.0) for number in range(GROUPS)]
    for batch in range(GROUPS // GROUPS_PER_BATCH):
        turns.append(batcher.on_side_input(step(batch), record_at("steps", 0), 0.0))
        for again in range(max(0, batch - repeats.get(batch, 0) + 1), batch + 1):
            turn = batcher.on_side_input(step(again), record_at("steps", 0), 0.0)
            assert turn.outputs == () and turn.finished == (), "a step that is repeated makes no room"
    outputs = [output.event for turn in turns for output in turn.outputs]
    return [(event.batch, event.groups) for event in outputs if isinstance(event, BatchPlanned)]


@given(st.dictionaries(st.integers(0, GROUPS // GROUPS_PER_BATCH - 1), st.integers(1, 4)))
def test_repeated_steps_change_no_plan(repeats: dict[int, int]) -> None:
    assert plans(repeats) == plans({})


def test_an_old_step_that_is_repeated_holds_no_batch_back() -> None:
    batcher = Batcher(BatchSettings(groups_per_batch=1, lookahead=1), (1.0, 0.1))
    planned: list[object] = []
    for batch in range(3):
        planned += batcher.on_event(ready(batch), record_at("groups", batch), 0.0).outputs
        assert len(planned) == batch + 1
        for repeated in (batch, max(0, batch - 1)):
            assert batcher.on_side_input(step(repeated), record_at("steps", 0), 0.0).outputs == ()
