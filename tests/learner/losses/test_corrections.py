"""Train-inference corrections against their formulas, token by token."""

import math
from typing import Any

import pytest
import torch

from learner.losses import TokenBatch, correction, metric_values, objective

# ρ of four tokens; two sequences of two.
RHO = [0.4, 3.0, 1.1, 0.9]


def batch() -> TokenBatch:
    old = torch.full((4,), -1.0, dtype=torch.float64)
    return TokenBatch(
        logp=old.clone().requires_grad_(),
        logp_old=old,
        advantage=torch.ones(4, dtype=torch.float64),
        seq=torch.tensor([0, 0, 1, 1]),
        num_seqs=2,
        logp_rollout=old - torch.tensor(RHO, dtype=torch.float64).log(),
    )


@pytest.mark.parametrize(
    ("name", "options", "weights"),
    [
        ("none", {}, [1.0, 1.0, 1.0, 1.0]),
        ("tis", {}, [0.4, 2.0, 1.1, 0.9]),
        ("tis", {"high": 1.0, "low": 0.5}, [0.5, 1.0, 1.0, 0.9]),
        ("tis", {"level": "sequence", "high": 1.0}, [1.0, 1.0, 0.99, 0.99]),
        ("mis", {}, [0.0, 0.0, 1.1, 0.9]),
        ("mis", {"low": 0.3, "high": 4.0}, [0.4, 3.0, 1.1, 0.9]),
        ("mis", {"level": "sequence", "high": 1.1}, [0.0, 0.0, 0.99, 0.99]),
        ("icepop", {}, [0.0, 3.0, 1.1, 0.9]),
        ("icepop", {"high": 2.0}, [0.0, 0.0, 1.1, 0.9]),
        ("geo", {"low": 0.9, "high": 1.09}, [0.0, 0.0, 1.0, 1.0]),  # √1.2 = 1.095, √0.99 = 0.995
        ("geo", {"low": 0.9, "high": 1.1}, [1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_weights(name: str, options: dict[str, Any], weights: list[float]) -> None:
    weight = correction(name, **options)(batch())
    assert not weight.requires_grad
    assert weight.tolist() == pytest.approx(weights)


def test_a_correction_multiplies_each_tokens_term() -> None:
    terms = objective("grpo", correction=correction("tis"))(batch())
    # ratio 1 and Â 1, so each term is its weight; mean over the tokens of a sequence.
    assert terms.numerator.tolist() == pytest.approx([-(0.4 + 2.0) / 2, -(1.1 + 0.9) / 2])
    assert terms.denominator.tolist() == [1.0, 1.0]


def test_rejected_tokens_still_count_in_the_mean() -> None:
    terms = objective("dapo", correction="mis")(batch())
    assert terms.numerator.sum().item() / terms.denominator.sum().item() == pytest.approx(-2.0 / 4)


def test_shares_are_metrics() -> None:
    shown = metric_values(objective("grpo", correction="icepop")(batch()).metrics)
    assert shown["correction/rejected"] == pytest.approx(1 / 4)
    assert shown["correction/weight"] == pytest.approx((3.0 + 1.1 + 0.9) / 4)
    shown = metric_values(objective("grpo", correction="tis")(batch()).metrics)
    assert shown["correction/clipped"] == pytest.approx(1 / 4)
    assert shown["correction/rejected"] == 0.0


@pytest.mark.parametrize("name", ["tis", "mis", "icepop", "geo", "none"])
def test_tokens_that_are_not_finite_weigh_nothing(name: str) -> None:
    full = batch()
    assert full.logp_rollout is not None
    full.logp_rollout[1] = math.nan
    weight = correction(name)(full)
    assert weight.shape == (4,) and weight.isfinite().all()
    assert weight[1].item() == 0.0


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_extreme_ratios_are_held(level: str) -> None:
    full = batch()
    assert full.logp_rollout is not None
    full.logp_rollout[0] = 50.0
    full.logp_rollout[1] = -900.0
    assert correction("tis", level=level, high=math.inf)(full).max().item() <= math.exp(20) * 1.000001


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("clip", {}, r"'clip'.*tis, mis, icepop, geo, none"),
        ("tis", {"cap": 2}, r"'tis'.*'cap'.*low, high, level"),
        ("none", {"low": 2}, r"'none'.*'low'"),
        ("mis", {"low": 3.0}, r"low is 3.0 and high is 2.0"),
        ("tis", {"level": "batch"}, r"'batch'.*'token' or 'sequence'"),
        ("geo", {"level": "token"}, r"'token'.*'sequence'"),
    ],
)
def test_wrong_settings_are_named(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        correction(name, **options)
