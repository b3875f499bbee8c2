"""What `status` says of services that stand still."""

from deploy.local.stalls import stalls, state_of

READY = dict.fromkeys(("dispatcher", "producer", "rewards", "groups", "batches", "learner"), "ready")


def test_a_producer_that_hangs_is_named_with_what_waits_for_it() -> None:
    lags = {"prompts": {"producer": 12, "groups": 20}}
    assert stalls(READY | {"producer": "does not answer"}, lags, {"rollouts": 41.4}) == [
        "producer does not answer; 12 records of prompts are not finished; nothing was written to rollouts since 41 s"
    ]


def test_an_aggregator_that_is_gone_is_named_with_the_requests_that_it_has_not_finished() -> None:
    lags = {"prompts": {"producer": 0, "groups": 20}, "scores": {"groups": 3}}
    assert stalls(READY | {"groups": "not running"}, lags, {"groups": 8.0}) == [
        "groups is not running; 3 records of scores and 20 records of prompts are not finished; "
        "nothing was written to groups since 8 s"
    ]


def test_an_aggregator_with_open_groups_alone_stands_not_still() -> None:
    assert stalls(READY, {"prompts": {"groups": 20}, "scores": {"groups": 0}}, {"groups": 60.0}) == []


def test_one_of_several_replicas_is_named_alone() -> None:
    states = {**READY, "rewards-0": "ready", "rewards-1": "not running"}
    del states["rewards"]
    assert stalls(states, {}, {}) == ["rewards-1 is not running"]


def test_a_service_that_answers_and_writes_nothing_is_named() -> None:
    lags = {"rollouts": {"rewards": 3}}
    assert stalls(READY, lags, {"scores": 9.0}) == []
    (found,) = stalls(READY, lags, {"scores": 72.0})
    assert found == "rewards has 3 records of rollouts in flight or before it; nothing was written to scores since 72 s"


def test_a_process_that_is_there_and_does_not_answer_runs() -> None:
    assert [state_of(None, None), state_of(None, 7)] == ["not running", "does not answer"]
    assert state_of({"ready": False, "silent": ["groups reads scores: nothing for 75 s"]}, 7) == "silent"


def test_a_service_whose_loop_has_stopped_is_named_though_it_answers() -> None:
    assert stalls(READY | {"groups": "silent"}, {"scores": {"groups": 3}}, {}) == [
        "groups runs and no longer reads; 3 records of scores are not finished"
    ]
    assert [state_of({"ready": True}, 7), state_of({"ready": False}, 7)] == ["ready", "starting"]
