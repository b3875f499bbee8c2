"""Entropy-shaped advantages, and the metrics that come with every objective."""

import math

import pytest
import torch

from learner.losses import TokenBatch, metric_values, objective, shaped_advantage, zero_variance_advantage

ENTROPY = torch.tensor([1.0, 3.0, 2.0, 5.0, 4.0])
SEQ = torch.tensor([0, 0, 1, 1, 2])


def test_shaping_of_the_papers_example() -> None:
    shaped = zero_variance_advantage(ENTROPY, SEQ, 4, torch.tensor([True, False, False, True]))
    torch.testing.assert_close(shaped, torch.tensor([0.1, 0.3, -0.3, 0.0, 0.0]))


def test_only_unanimous_groups_are_shaped() -> None:
    given = torch.tensor([0.5, 0.5, 0.0, 0.0, -0.7])
    shaped = shaped_advantage(given, torch.tensor([0, -1, 1]), ENTROPY, SEQ, alpha=0.2)
    torch.testing.assert_close(shaped, torch.tensor([0.5, 0.5, -0.6, 0.0, 0.8]))


def test_shaping_is_a_constant_of_the_update() -> None:
    entropy = ENTROPY.clone().requires_grad_()
    assert not zero_variance_advantage(entropy, SEQ, 3, torch.tensor([True, False, True])).requires_grad


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_entropy_that_is_not_finite_spoils_its_own_token_alone(bad: float) -> None:
    entropy = torch.tensor([1.0, bad, 2.0, 5.0])
    shaped = zero_variance_advantage(entropy, torch.tensor([0, 0, 0, 0]), 1, torch.tensor([False]))
    torch.testing.assert_close(shaped[[0, 2, 3]], torch.tensor([-0.4, -0.3, 0.0]))


def test_shaping_of_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"correct has shape \[2\].*\[3\]"):
        zero_variance_advantage(ENTROPY, SEQ, 3, torch.tensor([True, False]))
    with pytest.raises(ValueError, match=r"entropy has shape \[2\]"):
        zero_variance_advantage(ENTROPY[:2], SEQ, 3, torch.tensor([True, False, True]))


def test_metrics_of_a_batch_worked_by_hand() -> None:
    logp = torch.log(torch.tensor([0.5, 0.5, 0.5, 0.5, 0.5], dtype=torch.float64)).requires_grad_()
    old = torch.log(torch.tensor([0.5, 0.1, 0.5, 0.9, 0.5], dtype=torch.float64))
    batch = TokenBatch(
        logp=logp,
        logp_old=old,
        advantage=torch.ones(5, dtype=torch.float64),
        seq=torch.zeros(5, dtype=torch.int64),
        num_seqs=1,
        entropy_old=torch.tensor([0.0, 2.0, 0.1, 0.3, 0.2], dtype=torch.float64),
        logp_rollout=old + torch.tensor([0.0, 0.0, math.log(2), 0.0, 0.0], dtype=torch.float64),
    )
    shown = metric_values(objective("grpo")(batch).metrics)
    assert shown["clip_fraction"] == pytest.approx(1 / 5)  # token 1: ratio 5, pushed further up
    assert shown["clip_fraction/high"] == 1.0 and shown["clip_fraction/low"] == 0.0
    assert shown["entropy/high"] == 2.0 and shown["entropy/low"] == pytest.approx(0.15)
    assert shown["ratio_max"] == pytest.approx(5.0)
    assert shown["rollout_abs_delta_max"] == pytest.approx(math.log(2))
    assert shown["rollout_k3"] == pytest.approx((0.5 - 1 + math.log(2)) / 5)
