import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.local.restarts import RestartPolicy, Restarts

POLICY = RestartPolicy(first_s=0.5, max_s=4.0, quick_s=10.0, quick_failures=6)


def test_quick_failures_back_off_and_end() -> None:
    restarts = Restarts(POLICY)
    assert [restarts.failed(0.0) for _ in range(6)] == [0.5, 1.0, 2.0, 4.0, 4.0, None]


def test_what_was_at_work_is_started_again_at_once_and_afresh() -> None:
    restarts = Restarts(POLICY)
    for _ in range(5):
        restarts.failed(1.0)
    assert restarts.failed(11.0) == 0.0
    assert restarts.failed(1.0) == 0.5


def test_an_outage_is_outlived_however_long_it_lasts() -> None:
    restarts = Restarts(POLICY)
    delays = [restarts.failed(0.0, outside=True) for _ in range(10_000)]
    assert delays[:5] == [0.5, 1.0, 2.0, 4.0, 4.0]
    assert set(delays[5:]) == {4.0}


def test_an_outage_excuses_no_fault_of_its_own() -> None:
    restarts = Restarts(POLICY)
    for _ in range(5):
        assert restarts.failed(0.0) is not None
        assert restarts.failed(0.0, outside=True) is not None
    assert restarts.failed(0.0) is None


@pytest.mark.parametrize("outside", [True, False])
def test_a_tight_loop_of_restarts_is_impossible(outside: bool) -> None:
    restarts = Restarts(POLICY)
    assert restarts.failed(20.0, outside) == 0.0
    assert restarts.failed(0.0, outside) == 0.5


def test_what_dies_again_and_again_of_its_own_fault_is_delayed() -> None:
    restarts = Restarts(POLICY)
    assert [restarts.failed(11.0) for _ in range(POLICY.deaths)] == [0.0] * POLICY.deaths
    assert [restarts.failed(11.0) for _ in range(6)] == [0.5, 1.0, 2.0, 4.0, 4.0, 4.0]
    assert restarts.deaths == POLICY.deaths + 6
    assert restarts.failed(POLICY.window_s + 1) == 0.0, "it was at work for long"
    assert restarts.failed(11.0) == 0.0


def test_who_is_killed_again_and_again_starts_at_once() -> None:
    restarts = Restarts(POLICY)
    assert {restarts.failed(11.0, struck=True) for _ in range(1000)} == {0.0}
    assert {restarts.failed(11.0, outside=True) for _ in range(1000)} == {0.0}
    assert restarts.failed(11.0) == 0.0


@given(st.lists(st.tuples(st.floats(0, 30), st.booleans()), max_size=50))
def test_delays_stay_within_the_policy_and_only_own_quick_failures_end_it(lives: list[tuple[float, bool]]) -> None:
    restarts = Restarts(POLICY)
    own_quick = 0
    for served_s, outside in lives:
        delay_s = restarts.failed(served_s, outside)
        if served_s >= POLICY.quick_s:
            own_quick = 0
        elif not outside:
            own_quick += 1
        if delay_s is None:
            assert own_quick == POLICY.quick_failures and not outside
            return
        assert own_quick < POLICY.quick_failures
        if served_s < POLICY.quick_s or (restarts.deaths > POLICY.deaths and not outside):
            assert POLICY.first_s <= delay_s <= POLICY.max_s
        else:
            assert delay_s == 0.0
