"""ESPO's limits, its groups, and what does not change it."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.losses import TokenBatch, objective
from tests.learner.losses.loss_batches import LENGTHS, changed, gradient, loss_of, make_batch


def assert_same(one: TokenBatch, espo: Any, other: Any) -> None:
    """Value and gradient to the last bits of float64."""
    left, right = loss_of(espo(one)), loss_of(other(one))
    torch.testing.assert_close(left, right, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient(left, one), gradient(right, one), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("one_group", [{"top_fraction": 1.0}, {"boundaries": ()}])
@pytest.mark.parametrize("epsilon", [3e-4, 0.05, 0.3])
@pytest.mark.parametrize("token_advantages", [False, True])
def test_one_group_is_gspo(one_group: dict[str, Any], epsilon: float, token_advantages: bool) -> None:
    batch = make_batch(seed=6, token_advantages=token_advantages)
    espo = objective("espo", epsilon=epsilon, **one_group)
    assert_same(batch, espo, objective("gspo", clip_low=epsilon, clip_high=epsilon))


def test_one_group_with_two_sides_is_gspo() -> None:
    sides: dict[str, Any] = {"clip_low": 3e-4, "clip_high": 4e-4}
    assert_same(make_batch(seed=6), objective("espo", top_fraction=1.0, **sides), objective("gspo", **sides))


@pytest.mark.parametrize("epsilon", [0.01, 0.2])
@pytest.mark.parametrize("token_advantages", [False, True])
def test_single_token_groups_are_grpo(epsilon: float, token_advantages: bool) -> None:
    batch = make_batch(seed=7, token_advantages=token_advantages)
    each_its_own = [k / max(LENGTHS) for k in range(1, max(LENGTHS))]
    espo = objective("espo", epsilon=epsilon, boundaries=each_its_own)
    assert_same(batch, espo, objective("grpo", clip_low=epsilon, clip_high=epsilon))


def test_printed_form_is_the_group_form_where_policies_agree() -> None:
    batch = make_batch(seed=8, spread=0.0)
    assert_same(batch, objective("espo"), objective("espo", ratio="group_times_token"))


@given(order=st.permutations(range(8)))
@settings(max_examples=20, deadline=None)
@pytest.mark.parametrize("ratio", ["group", "group_times_token"])
def test_the_order_inside_a_group_does_not_count(ratio: str, order: list[int]) -> None:
    batch = make_batch([10], seed=8)
    assert batch.entropy_old is not None
    low = torch.argsort(batch.entropy_old)[:8]  # ⌈20 % of 10⌉ = 2 tokens are high
    shuffled = torch.arange(10)
    shuffled[low] = low[order]
    # The tokens' ratios change places, their entropies stay: the groups hold the same places.
    logp = batch.logp.detach()
    moved = changed(batch, logp=logp[shuffled].requires_grad_(), logp_old=batch.logp_old[shuffled])
    espo = objective("espo", alpha=0.3, ratio=ratio)
    loss, loss_moved = loss_of(espo(batch)), loss_of(espo(moved))
    torch.testing.assert_close(loss, loss_moved, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient(loss, batch)[shuffled], gradient(loss_moved, moved), rtol=1e-12, atol=0)


def test_a_token_that_changes_its_group_does_count() -> None:
    batch = make_batch([10], seed=8)
    assert batch.entropy_old is not None
    high, low = int(batch.entropy_old.argmax()), int(batch.entropy_old.argmin())
    places = torch.arange(10)
    places[[high, low]] = places[[low, high]]
    moved = changed(batch, entropy_old=batch.entropy_old[places])
    espo = objective("espo", epsilon=0.01)
    assert loss_of(espo(batch)).item() != pytest.approx(loss_of(espo(moved)).item())


def test_entropy_ties_are_broken_by_position() -> None:
    batch = changed(make_batch([10], seed=9), entropy_old=torch.ones(10, dtype=torch.float64))
    other = changed(batch, entropy_old=torch.tensor([2.0, 2.0] + [1.0] * 8, dtype=torch.float64))
    espo = objective("espo", epsilon=0.1)
    assert loss_of(espo(batch)).item() == loss_of(espo(other)).item()


@pytest.mark.parametrize(("tokens", "high"), [(1, 1), (5, 1), (6, 2), (10, 2), (11, 3), (30, 6)])
def test_the_high_group_is_a_fifth_rounded_up(tokens: int, high: int) -> None:
    metrics = objective("espo")(make_batch([tokens])).metrics
    assert metrics["entropy/high"][1].item() == high
    assert metrics["entropy/low"][1].item() == tokens - high


@pytest.mark.parametrize(("tokens", "share", "high"), [(10, 0.3, 3), (10, 0.7, 7), (100, 0.07, 7), (3, 0.99, 3)])
def test_shares_that_binary_cannot_write_are_rounded_as_meant(tokens: int, share: float, high: int) -> None:
    metrics = objective("espo", top_fraction=share)(make_batch([tokens])).metrics
    assert metrics["entropy/high"][1].item() == high


def test_more_groups_than_tokens_leave_some_empty() -> None:
    """An empty group is no member of the mean: a lone token has the whole weight of its response."""
    batch = make_batch([1], seed=3)
    loss = loss_of(objective("espo", epsilon=10.0, boundaries=[0.2, 0.4, 0.6, 0.8])(batch))
    assert gradient(loss, batch).item() == pytest.approx(loss.item())


def test_one_group_with_fixed_range_needs_no_entropy() -> None:
    batch = changed(make_batch(), entropy_old=None, vocab_size=None)
    assert objective("espo", top_fraction=1.0, epsilon=0.1)(batch).numerator.isfinite().all()
