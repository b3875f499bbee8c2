"""Packing: what must hold of every plan, and how near it comes to the optimum that brute force finds."""

import itertools
import math
import random
import time
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers.batches.packing import Plan, plan

COSTS = st.sampled_from([(1.0, 0.0), (0.0, 1.0), (1.0, 0.01), (3e9, 1e5)])


def load(indices: Sequence[int], lengths: Sequence[int], cost: tuple[float, float]) -> float:
    return sum(cost[0] * lengths[i] + cost[1] * lengths[i] ** 2 for i in indices)


def flat(rank: list[list[int]]) -> list[int]:
    return [i for micro in rank for i in micro]


def slowest_optimum(lengths: list[int], ranks: int, cost: tuple[float, float]) -> float:
    """The lowest cost of the slowest rank over every division."""
    if not lengths:
        return 0.0
    return min(
        max(load([i for i, home in enumerate(homes) if home == rank], lengths, cost) for rank in range(ranks))
        for homes in itertools.product(range(ranks), repeat=len(lengths))
    )


def fewest_bins(lengths: list[int], budget: int) -> int:
    """The least number of micro-batches over every packing."""
    for count in range(1, len(lengths) + 1):
        for homes in itertools.product(range(count), repeat=len(lengths)):
            filled = [0] * count
            for length, home in zip(lengths, homes, strict=True):
                filled[home] += length
            if max(filled) <= budget:
                return count
    return 0


def assert_is_a_plan(found: Plan, lengths: list[int], ranks: int, budget: int, cost: tuple[float, float]) -> None:
    assert len(found.ranks) == ranks
    assert sorted(i for rank in found.ranks for i in flat(rank)) == list(range(len(lengths)))
    assert len({len(rank) for rank in found.ranks}) == 1
    assert all(sum(lengths[i] for i in micro) <= budget for rank in found.ranks for micro in rank)
    assert found.loads == pytest.approx([load(flat(rank), lengths, cost) for rank in found.ranks])
    assert found.empty == sum(not micro for rank in found.ranks for micro in rank)
    if lengths:
        assert found.fill == pytest.approx(sum(lengths) / (ranks * found.micro_batches * budget))
        assert found.imbalance == pytest.approx(max(found.loads) * ranks / sum(found.loads))


@given(st.lists(st.integers(1, 100), max_size=80), st.integers(1, 9), st.integers(100, 400), COSTS)
def test_every_plan_is_whole_within_budget_and_deterministic(
    lengths: list[int], ranks: int, budget: int, cost: tuple[float, float]
) -> None:
    found = plan(lengths, ranks, budget, cost)
    assert_is_a_plan(found, lengths, ranks, budget, cost)
    assert plan(lengths, ranks, budget, cost) == found


@given(st.lists(st.integers(1, 100), max_size=60), st.integers(1, 6), st.integers(100, 400), COSTS)
def test_a_micro_batch_is_empty_only_where_a_rank_has_too_few_sequences(
    lengths: list[int], ranks: int, budget: int, cost: tuple[float, float]
) -> None:
    found = plan(lengths, ranks, budget, cost)
    for rank in found.ranks:
        assert sum(not micro for micro in rank) == max(0, found.micro_batches - len(flat(rank)))
        assert rank == sorted(rank, key=lambda micro: -load(micro, lengths, cost))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=7), st.integers(1, 3), COSTS)
def test_the_slowest_rank_is_near_the_optimum(lengths: list[int], ranks: int, cost: tuple[float, float]) -> None:
    found = plan(lengths, ranks, 60, cost)
    bound = 4 / 3 - 1 / (3 * ranks)
    assert max(found.loads) <= slowest_optimum(lengths, ranks, cost) * bound * (1 + 1e-9)


def test_the_slowest_rank_is_mostly_optimal() -> None:
    chosen = random.Random(7)
    lengths = [[chosen.randint(1, 60) for _ in range(chosen.randint(3, 8))] for _ in range(60)]
    optimal = sum(
        max(plan(group, 2, 60, (1.0, 0.05)).loads) <= slowest_optimum(group, 2, (1.0, 0.05)) * (1 + 1e-9)
        for group in lengths
    )
    assert optimal >= 0.9 * len(lengths)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(30, 45))
def test_micro_batches_are_near_the_fewest(lengths: list[int], budget: int) -> None:
    found = plan(lengths, 1, budget)
    assert found.micro_batches <= math.floor(11 / 9 * fewest_bins(lengths, budget) + 1)
    assert found.empty == 0


def test_small_batches_are_evened_out_by_exchanges() -> None:
    chosen = random.Random(3)
    batches = [[int(chosen.lognormvariate(7, 0.5)) + 1 for _ in range(24)] for _ in range(10)]
    assert max(plan(lengths, 4, 32_768, (1.0, 1e-4)).imbalance for lengths in batches) < 1.004


def test_short_sequences_are_lent_to_a_rank_with_too_few() -> None:
    # With quadratic cost one long sequence weighs as much as many short ones, which need more micro-batches.
    lengths = [100] + [10] * 90
    found = plan(lengths, 2, 100, (0.0, 1.0))
    assert found.imbalance == pytest.approx(1.0, abs=0.06)
    assert found.micro_batches <= 9


def test_fewer_sequences_than_ranks_leave_empty_micro_batches() -> None:
    found = plan([5, 6], 4, 10)
    assert (found.micro_batches, found.empty) == (1, 2)
    assert plan([], 3, 10).ranks == [[], [], []]


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="sequence 1 has 11 tokens, more than the token budget of 10"):
        plan([3, 11], 2, 10)
    with pytest.raises(ValueError, match="sequence 0 has 0 tokens"):
        plan([0], 2, 10)
    with pytest.raises(ValueError, match="ranks 0"):
        plan([1], 0, 10)
    with pytest.raises(ValueError, match="cost"):
        plan([1], 1, 10, (0.0, 0.0))


def test_512_sequences_are_planned_at_once() -> None:
    chosen = random.Random(3)
    lengths = [min(32_768, int(chosen.lognormvariate(7, 1)) + 1) for _ in range(512)]
    best_s = math.inf
    for _ in range(3):
        started = time.thread_time()
        found = plan(lengths, 8, 32_768, (1.0, 1e-4))
        best_s = min(best_s, time.thread_time() - started)
    assert best_s < 0.05
    assert found.imbalance < 1.01
