"""Which sequences share a batch, and in which order, changes nothing."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.losses import OBJECTIVES, LossTerms, correction, merge_metrics, metric_values, objective
from tests.learner.losses.loss_batches import LENGTHS, changed, gradient, loss_of, make_batch, select, take

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in OBJECTIVES),
    ("grpo", {"max_tokens": 20}),
    ("espo", {"ratio": "group_times_token", "boundaries": [0.3, 0.7]}),
]


@pytest.mark.parametrize(("name", "options"), VARIANTS)
@pytest.mark.parametrize("weighing", [("tis", "token"), ("geo", "sequence")])
@given(order=st.permutations(range(6)), cuts=st.sets(st.integers(1, 5)), filler=st.integers(0, 3))
@settings(max_examples=6, deadline=None)
def test_splitting_into_micro_batches_changes_nothing(
    name: str, options: dict[str, Any], weighing: tuple[str, str], order: list[int], cuts: set[int], filler: int
) -> None:
    batch = make_batch()
    policy = objective(name, correction=correction(weighing[0], level=weighing[1]), kl=0.01, **options)
    whole = policy(batch)
    edges = [0, *sorted(cuts), 6]
    parts = [policy(select(batch, list(order[a:b]))) for a, b in pairwise(edges)]
    parts.append(policy(changed(select(batch, [order[0]]), num_seqs=1 + filler)))
    parts[-1] = LossTerms(parts[-1].numerator[1:], parts[-1].denominator[1:], {})  # filler sequences alone
    numerator = torch.stack([p.numerator.sum() for p in parts]).sum()
    denominator = torch.stack([p.denominator.sum() for p in parts]).sum()
    torch.testing.assert_close(numerator / denominator, loss_of(whole), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(
        gradient(numerator / denominator, batch), gradient(loss_of(whole), batch), rtol=1e-11, atol=1e-14
    )
    shown, merged = metric_values(whole.metrics), metric_values(merge_metrics(p.metrics for p in parts))
    assert shown.keys() == merged.keys()
    assert all(math.isclose(shown[key], merged[key], rel_tol=1e-9, abs_tol=1e-12) for key in shown)


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_tokens_of_several_sequences_may_be_interleaved(name: str, options: dict[str, Any]) -> None:
    batch = make_batch()
    mixed = take(batch, torch.argsort(torch.cat([torch.arange(n) for n in LENGTHS]), stable=True))
    policy = objective(name, **options)
    torch.testing.assert_close(policy(batch).numerator, policy(mixed).numerator, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("name", "options"), VARIANTS)
@given(order=st.permutations(range(10)))
@settings(max_examples=10, deadline=None)
def test_the_order_of_a_responses_tokens_changes_nothing(name: str, options: dict[str, Any], order: list[int]) -> None:
    """Entropies are distinct here, so that no tie is broken by position."""
    batch = make_batch([10], seed=4, token_advantages=True)
    moved = take(batch, torch.tensor(order))
    policy = objective(name, correction="tis", **options)
    torch.testing.assert_close(policy(batch).numerator, policy(moved).numerator, rtol=1e-12, atol=1e-14)
