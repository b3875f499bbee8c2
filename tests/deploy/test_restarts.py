from hypothesis import given
from hypothesis import strategies as st

from deploy.restarts import RestartPolicy, Restarts

POLICY = RestartPolicy(first_s=0.5, max_s=4.0, quick_s=60.0, quick_failures=6)


def test_quick_failures_back_off_and_end() -> None:
    restarts = Restarts(POLICY)
    assert [restarts.failed(1.0) for _ in range(6)] == [0.5, 1.0, 2.0, 4.0, 4.0, None]


def test_a_long_life_starts_afresh() -> None:
    restarts = Restarts(POLICY)
    for _ in range(5):
        restarts.failed(1.0)
    assert restarts.failed(61.0) == 0.5
    assert restarts.failed(1.0) == 1.0


@given(st.lists(st.floats(0, 200), max_size=50))
def test_delays_stay_within_the_policy_and_only_quick_failures_end_it(lives: list[float]) -> None:
    restarts = Restarts(POLICY)
    for index, lived_s in enumerate(lives):
        delay_s = restarts.failed(lived_s)
        if delay_s is None:
            recent = lives[max(0, index - POLICY.quick_failures + 2) : index + 1]
            assert all(life < POLICY.quick_s for life in recent)
            return
        assert POLICY.first_s <= delay_s <= POLICY.max_s
