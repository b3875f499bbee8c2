"""Nothing to train on, numbers that are none, log-ratios of ±50, and settings or batches that do not fit."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from learner.losses import OBJECTIVES, TokenBatch, correction, metric_values, objective
from tests.learner.losses.loss_batches import changed, gradient, make_batch, take

NO_SEQ = torch.zeros(0, dtype=torch.int64)


@pytest.mark.parametrize("name", list(OBJECTIVES))
@pytest.mark.parametrize("num_seqs", [0, 3])
def test_no_tokens_at_all(name: str, num_seqs: int) -> None:
    empty = torch.zeros(0, requires_grad=True)
    constant = empty.detach()
    batch = TokenBatch(empty, constant, constant, NO_SEQ, num_seqs, constant, vocab_size=9)
    terms = objective(name)(batch)
    assert terms.numerator.tolist() == terms.denominator.tolist() == [0.0] * num_seqs
    assert terms.loss().item() == 0.0
    torch.autograd.backward(terms.loss())
    assert metric_values(terms.metrics) == {}


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_a_sequence_without_tokens_is_no_member_of_the_mean(name: str) -> None:
    with_empty, without = make_batch([3, 0, 4]), make_batch([3, 4])
    terms, expected = objective(name)(with_empty), objective(name)(changed(with_empty, seq=without.seq, num_seqs=2))
    assert terms.numerator[1].item() == terms.denominator[1].item() == 0.0
    assert terms.loss().item() == expected.loss().item()


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_one_token(name: str) -> None:
    """At the old policy every objective is the policy gradient −Â·∇ log π."""
    batch = make_batch([1], spread=0.0)
    grad = gradient(objective(name)(batch).loss(), batch)
    torch.testing.assert_close(grad, -batch.advantage, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_tokens_that_are_not_finite_are_as_if_absent_and_counted(name: str) -> None:
    batch = make_batch()
    bad = [0, 4, 9, 20, 30, 35]  # token 0 is the whole of sequence 0
    values = [math.nan, math.inf, -math.inf, math.nan, -math.inf, math.nan]
    fields = ["logp", "logp_old", "advantage", "entropy_old", "logp_rollout", "logp_ref"]
    broken: dict[str, Tensor] = {}
    for field, token, value in zip(fields, bad, values, strict=True):
        broken[field] = getattr(batch, field).detach().clone()
        broken[field][token] = value
    broken["logp"].requires_grad_()
    clean = take(batch, torch.tensor([t for t in range(len(batch.seq)) if t not in bad]))
    policy = objective(name, correction=correction("mis"), kl=0.1)
    got_batch = changed(batch, **broken)
    got, expected = policy(got_batch), policy(clean)
    torch.testing.assert_close(got.numerator, expected.numerator, rtol=1e-12, atol=0)
    assert got.denominator.tolist() == expected.denominator.tolist()
    assert got.denominator[0].item() == 0.0
    grad = gradient(got.loss(), got_batch)
    assert grad.isfinite().all() and grad[bad].abs().sum().item() == 0.0
    assert got.metrics["nonfinite"].tolist() == [float(len(bad)), float(len(batch.seq))]


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_all_masked(name: str) -> None:
    batch = make_batch()
    terms = objective(name)(changed(batch, logp_old=torch.full_like(batch.logp_old, math.nan)))
    assert terms.numerator.abs().sum().item() == terms.denominator.sum().item() == 0.0
    assert gradient(terms.loss(), batch).tolist() == [0.0] * len(batch.seq)


@pytest.mark.parametrize("name", list(OBJECTIVES))
@pytest.mark.parametrize("delta", [50.0, -50.0])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_ratios_of_fifty_are_held_and_counted(
    name: str, delta: float, advantage: float, dtype: torch.dtype
) -> None:
    old = torch.full((4,), -51.0 if delta > 0 else -1.0, dtype=dtype)
    batch = TokenBatch(
        logp=(old + delta).requires_grad_(),
        logp_old=old,
        advantage=torch.full((4,), advantage, dtype=dtype),
        seq=torch.zeros(4, dtype=torch.int64),
        num_seqs=1,
        entropy_old=torch.tensor([3.0, 1.0, 2.0, 0.5], dtype=dtype),
        logp_rollout=old,
        vocab_size=100,
    )
    terms = objective(name, correction="tis")(batch)
    assert terms.numerator.isfinite().all() and terms.numerator.abs().max() <= 4 * math.exp(20.001) * 51
    assert gradient(terms.loss(), batch).isfinite().all()
    assert metric_values(terms.metrics)["log_ratio_held"] == 1.0


@st.composite
def extreme_batches(draw: st.DrawFn) -> TokenBatch:
    lengths = draw(st.lists(st.integers(0, 6), min_size=1, max_size=4))
    tokens = sum(lengths)

    def column(low: float, high: float) -> Tensor:
        numbers = st.floats(low, high, width=32) | st.sampled_from([math.nan, math.inf, -math.inf, 0.0, low])
        return torch.tensor(draw(st.lists(numbers, min_size=tokens, max_size=tokens)), dtype=torch.float32)

    seq = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return TokenBatch(
        logp=column(-50, 0).requires_grad_(),
        logp_old=column(-50, 0),
        advantage=column(-100, 100),
        seq=seq,
        num_seqs=len(lengths),
        entropy_old=column(0, 12),
        logp_rollout=column(-50, 0),
        vocab_size=151_936,
        logp_ref=column(-50, 0),
    )


@pytest.mark.parametrize("name", list(OBJECTIVES))
@given(batch=extreme_batches(), weighing=st.sampled_from(["none", "tis", "mis", "icepop", "geo"]))
@settings(max_examples=20, deadline=None)
def test_extreme_inputs_stay_finite(name: str, batch: TokenBatch, weighing: str) -> None:
    terms = objective(name, correction=correction(weighing), kl=0.1)(batch)
    assert terms.numerator.isfinite().all() and terms.denominator.isfinite().all()
    assert gradient(terms.loss(), batch).isfinite().all()
    assert all(math.isfinite(value) for value in metric_values(terms.metrics).values())
    if name == "espo":
        times = objective(name, ratio="group_times_token")(batch)
        assert times.numerator.isfinite().all() and gradient(times.loss(), batch).isfinite().all()


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("ppo", {}, r"'ppo'.*espo, grpo, dapo, gspo, cispo, gmpo"),
        ("grpo", {"alpha": 1}, r"'grpo'.*'alpha'.*clip_low, clip_high"),
        ("espo", {"ratio": "token"}, r"'token'.*'group' or 'group_times_token'"),
        ("espo", {"top_fraction": 0.0}, r"top_fraction is 0.0"),
        ("espo", {"boundaries": [0.9, 0.5]}, r"boundaries are \[0.9, 0.5\]"),
        ("espo", {"alpha": -1.0}, r"alpha is -1.0"),
        ("espo", {"epsilon_floor": math.nan}, r"epsilon_floor is nan"),
        ("espo", {"epsilon": -0.1}, r"epsilon is -0.1"),
        ("espo", {"clip_low": 0.1}, r"given together"),
        ("espo", {"epsilon": 0.1, "clip_low": 0.1, "clip_high": 0.1}, r"give one of them"),
        ("gspo", {"clip_low": -0.1}, r"gspo: clip_low is -0.1"),
        ("gspo", {"clip_high": math.nan}, r"gspo: clip_high is nan"),
        ("grpo", {"max_tokens": 0}, r"max_tokens is 0"),
        ("grpo", {"old": "engine"}, r"old is 'engine'"),
        ("grpo", {"kl": -1.0}, r"kl is -1.0"),
        ("grpo", {"correction": "magic"}, r"Unknown correction 'magic'"),
    ],
)
def test_wrong_settings_are_named(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        objective(name, **options)


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        (objective("espo"), "entropy_old"),
        (objective("espo", top_fraction=1.0), "vocab_size"),
        (objective("grpo", correction=correction("tis")), "logp_rollout"),
        (objective("grpo", old="rollout"), "logp_rollout"),
        (objective("grpo", kl=0.1), "logp_ref"),
    ],
)
def test_missing_fields_are_named(policy: Any, field: str) -> None:
    with pytest.raises(ValueError, match=field):
        policy(changed(make_batch(), **{field: None}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"logp_old": torch.zeros(3)}, r"logp_old has shape \[3\]"),
        ({"logp": torch.zeros(19, 2)}, r"logp must be flat"),
        ({"seq": torch.zeros(38)}, r"seq has dtype torch.float32"),
        ({"seq": torch.full((38,), 6)}, r"from 6 to 6.*0 to 5"),
        ({"num_seqs": -1}, r"num_seqs is -1"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        changed(make_batch(), **change)
