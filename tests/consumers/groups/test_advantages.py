"""Advantages of a group: the formula of docs/objectives.md and what must hold of it for any rewards."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.groups.advantages import Normalise, group_advantages

REWARDS = st.lists(st.tuples(st.floats(-100, 100), st.booleans()), min_size=1, max_size=24)


@given(REWARDS)
def test_is_the_formula(group: list[tuple[float, bool]]) -> None:
    rewards, valid = [r for r, _ in group], [v for _, v in group]
    counted = [r for r, v in group if v]
    found = group_advantages(rewards, valid)
    std = statistics.pstdev(counted) if counted else 0.0
    if abs(std - 1e-6) < 1e-9:
        return
    if std <= 1e-6:
        assert found is None
        return
    assert found is not None
    mean = statistics.fmean(counted)
    expected = [(r - mean) / (std + 1e-6) if v else 0.0 for r, v in group]
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-6)


@given(REWARDS, st.floats(-50, 50), st.sampled_from(["std", "none", "loo"]))
def test_sum_to_zero_ignore_a_shift_and_keep_the_order(
    group: list[tuple[float, bool]], shift: float, normalise: Normalise
) -> None:
    rewards, valid = [r for r, _ in group], [v for _, v in group]
    found = group_advantages(rewards, valid, normalise=normalise)
    moved = group_advantages([r + shift for r in rewards], valid, normalise=normalise)
    if found is None or moved is None:
        return
    assert math.fsum(found) == pytest.approx(0.0, abs=1e-6)
    if statistics.pstdev([r for r, v in group if v]) > 1e-3:
        assert moved == pytest.approx(found, rel=1e-6, abs=1e-6)
    order = sorted((r, a) for r, a, v in zip(rewards, found, valid, strict=True) if v)
    assert [a for _, a in order] == sorted(a for _, a in order)


def test_worked_examples() -> None:
    assert group_advantages([1.0, 0.0, 1.0, 0.0], [True] * 4) == pytest.approx([1, -1, 1, -1], abs=1e-5)
    assert group_advantages([1.0, 0.0, 7.0], [True, True, False], normalise="none") == [0.5, -0.5, 0.0]
    assert group_advantages([3.0, 0.0, 0.0], [True] * 3, normalise="loo") == pytest.approx([3.0, -1.5, -1.5])


@pytest.mark.parametrize(
    ("rewards", "valid"),
    [([], []), ([1.0], [True]), ([1.0, 1.0], [True, True]), ([1.0, 0.0], [True, False]), ([1.0, 0.0], [False, False])],
)
def test_zero_variance(rewards: list[float], valid: list[bool]) -> None:
    assert group_advantages(rewards, valid) is None


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="2 rewards and 1 valid"):
        group_advantages([1.0, 2.0], [True])
    with pytest.raises(ValueError, match="reward nan"):
        group_advantages([math.nan, 2.0], [True, True])
    with pytest.raises(ValueError, match="'mad' is not one of std, none, loo"):
        group_advantages([1.0, 2.0], [True, True], normalise="mad")  # type: ignore[arg-type]
    assert group_advantages([math.nan, 2.0, 3.0], [False, True, True]) is not None
