"""Penalties and the reward they make."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.rewards.penalties import corrected, overlong, repetition
from schemas import RewardComponent


@pytest.mark.parametrize(("tokens", "expected"), [(0, 0.0), (80, 0.0), (90, -0.5), (100, -1.0), (120, -1.0)])
def test_overlong(tokens: int, expected: float) -> None:
    assert overlong(tokens, 100, 0.2) == pytest.approx(expected)


@given(st.lists(st.integers(0, 5), max_size=60), st.integers(1, 6))
def test_repetition_is_the_share_of_repeated_ngrams(tokens: list[int], n: int) -> None:
    seen: set[tuple[int, ...]] = set()
    repeated = 0
    ngrams = [tuple(tokens[at : at + n]) for at in range(len(tokens) - n + 1)]
    for ngram in ngrams:
        repeated += ngram in seen
        seen.add(ngram)
    value = repetition([tokens], n)
    assert value == pytest.approx(-repeated / len(ngrams) if ngrams else 0.0)
    assert -1 < value <= 0


def test_no_ngram_reaches_over_what_was_given() -> None:
    assert repetition([[1, 2], [1, 2]], 2) == pytest.approx(-0.5)
    assert repetition([[1, 2], [3], [1, 2]], 2) == pytest.approx(-0.5)
    assert repetition([[1], [2], [1], [2]], 2) == 0.0


def test_reward_is_the_weighted_sum() -> None:
    components = [
        RewardComponent(name="exact_match", version="1", value=1.0),
        RewardComponent(name="length", version="1", value=-0.5, weight=0.2),
    ]
    assert corrected(components) == pytest.approx(0.9)
    assert corrected([]) == 0.0
