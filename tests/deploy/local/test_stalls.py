"""What `status` says of stages that stand still."""

from analysis.history.run_log import READERS
from deploy.local.stalls import stalls, state_of

READY = dict.fromkeys(("dispatcher", "producer", "rewards", "groups", "batches", "learner"), "ready")


def test_a_producer_that_hangs_is_named_with_what_waits_for_it() -> None:
    told = stalls(READY | {"producer": "does not answer"}, {"prompts": 12}, READERS, {"rollouts": 41.4})
    assert told == [
        "producer does not answer; 12 records of prompts are not finished; nothing was written to rollouts since 41 s"
    ]


def test_one_of_several_replicas_is_named_alone() -> None:
    states = {**READY, "rewards-0": "ready", "rewards-1": "not running"}
    del states["rewards"]
    assert stalls(states, {}, READERS, {}) == ["rewards-1 is not running"]


def test_a_stage_that_answers_and_writes_nothing_is_named() -> None:
    assert stalls(READY, {"rollouts": 3}, READERS, {"scores": 9.0}) == []
    (told,) = stalls(READY, {"rollouts": 3}, READERS, {"scores": 12.0})
    assert told == "rewards has 3 records of rollouts in hand or before it; nothing was written to scores since 12 s"


def test_a_process_that_is_there_and_does_not_answer_runs() -> None:
    assert [state_of(None, None), state_of(None, 7)] == ["not running", "does not answer"]
    assert [state_of({"ready": True}, 7), state_of({"ready": False}, 7)] == ["ready", "starting"]
