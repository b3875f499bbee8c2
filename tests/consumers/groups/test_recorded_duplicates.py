"""A duplicate is recorded once: also where the memory of it was needed for something else while its group was open."""

from consumers.groups.settings import GroupSettings
from schemas import GroupReady, RolloutDisposed
from tests.builders import record_at, rollout_disposed
from tests.consumers.groups.stage import Stage, score


def crowded() -> Stage:
    """A stage that remembers one group, beside those that are open."""
    return Stage(GroupSettings(remember_groups=1))


def close_another(stage: Stage) -> None:
    for index in range(2):
        result = stage.deliver(score("q.0", index, reward=float(index), requested_s=10.0))
    assert isinstance(result.outputs[0].event, GroupReady)


def test_a_duplicate_of_an_open_group_is_known_as_long_as_the_group_is_open_and_after_it() -> None:
    stage = crowded()
    stage.deliver(score(index=0, attempt=0))
    (recorded,) = stage.deliver(score(index=0, attempt=1)).outputs
    assert isinstance(recorded.event, RolloutDisposed) and recorded.event.disposition == "duplicate"
    close_another(stage)
    assert stage.deliver(score(index=0, attempt=1)).outputs == ()
    (closed,) = stage.deliver(score(index=1, reward=0.0)).outputs
    assert isinstance(closed.event, GroupReady)
    assert stage.deliver(score(index=0, attempt=1)).outputs == ()


def test_a_recalled_duplicate_that_is_forgotten_is_behind_the_edge() -> None:
    """Its group was asked for before it was recorded, so that nothing of it is opened again."""
    stage = crowded()
    duplicate = score(index=0, attempt=1)
    recorded = rollout_disposed(duplicate.rollout_id, duplicate.rollout, "duplicate", 50.0)
    stage.processor.on_own_output(recorded, record_at("groups"))
    close_another(stage)
    (end,) = stage.deliver(score(index=0, attempt=1, requested_s=40.0)).outputs
    assert isinstance(end.event, RolloutDisposed) and end.event.disposition == "expired"
    assert stage.deliver(score(index=0, requested_s=51.0)).outputs == (), "of a group that is younger"
