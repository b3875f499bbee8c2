"""Objectives against float64 references written from the papers' formulas, sequence by sequence, in plain loops."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from learner.losses import (
    OBJECTIVES,
    LossTerms,
    TokenBatch,
    correction,
    merge_metrics,
    metric_values,
    objective,
    zero_variance_advantage,
)

VOCAB = 64
LENGTHS = [1, 2, 5, 7, 10, 13]


def make_batch(
    lengths: list[int] = LENGTHS, seed: int = 0, spread: float = 0.3, dtype: torch.dtype = torch.float64
) -> TokenBatch:
    g = torch.Generator().manual_seed(seed)
    tokens = sum(lengths)
    seq = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths, dtype=torch.int64))
    old = -torch.rand(tokens, generator=g, dtype=dtype) * 3
    return TokenBatch(
        logp=(old + torch.randn(tokens, generator=g, dtype=dtype) * spread).requires_grad_(),
        logp_old=old,
        advantage=torch.randn(len(lengths), generator=g, dtype=dtype)[seq],
        seq=seq,
        num_seqs=len(lengths),
        entropy_old=torch.rand(tokens, generator=g, dtype=dtype) * 4,
        logp_rollout=old + torch.randn(tokens, generator=g, dtype=dtype) * 0.4,
        vocab_size=VOCAB,
        logp_ref=old + torch.randn(tokens, generator=g, dtype=dtype) * 0.2,
    )


def loss_of(terms: LossTerms) -> Tensor:
    return terms.numerator.sum() / terms.denominator.sum()


def gradient(loss: Tensor, batch: TokenBatch) -> Tensor:
    (grad,) = torch.autograd.grad(loss, batch.logp)
    return grad


# --- references: one sequence at a time, from the formulas ------------------------------------------------------------

Row = dict[str, Tensor]


def rows(batch: TokenBatch) -> list[Row]:
    names = ("logp", "logp_old", "advantage", "entropy_old", "logp_rollout", "logp_ref")
    return [
        {name: getattr(batch, name)[batch.seq == i] for name in names if getattr(batch, name) is not None}
        for i in range(batch.num_seqs)
    ]


def ppo(s: Tensor, a: Tensor, low: float, high: float) -> Tensor:
    bounded = torch.where(s > 1 + high, torch.full_like(s, 1 + high), s)
    bounded = torch.where(s < 1 - low, torch.full_like(s, 1 - low), bounded)
    return torch.where(s * a <= bounded * a, s * a, bounded * a)


def ref_grpo(batch: TokenBatch, low: float = 0.2, high: float = 0.28, max_tokens: int | None = None) -> Tensor:
    per_sequence = []
    for row in rows(batch):
        term = ppo(torch.exp(row["logp"] - row["logp_old"]), row["advantage"], low, high)
        per_sequence.append(term.sum() / (max_tokens or len(term)))
    return -torch.stack(per_sequence).mean()


def ref_dapo(batch: TokenBatch, low: float = 0.2, high: float = 0.28) -> Tensor:
    terms = [ppo(torch.exp(r["logp"] - r["logp_old"]), r["advantage"], low, high) for r in rows(batch)]
    return -torch.cat(terms).mean()


def ref_gspo(batch: TokenBatch, low: float = 3e-4, high: float = 4e-4) -> Tensor:
    """Sequence-level form, Eq. 5: the ratio is (π(y)/π_old(y))^(1/|y|), nothing is detached."""
    values = []
    for row in rows(batch):
        ratio = (row["logp"].sum() - row["logp_old"].sum()).exp() ** (1 / len(row["logp"]))
        values.append(ppo(ratio, row["advantage"][0], low, high))
    return -torch.stack(values).mean()


def ref_cispo(batch: TokenBatch, low: float = 1.0, high: float = 4.0) -> Tensor:
    total, count = torch.zeros((), dtype=torch.float64), 0
    for row in rows(batch):
        r = torch.exp(row["logp"] - row["logp_old"]).detach()
        r = torch.where(r < 1 - low, 1 - low, torch.where(r > 1 + high, 1 + high, r))
        total = total + (r * row["advantage"] * row["logp"]).sum()
        count += len(r)
    return -total / count


def ref_gmpo(batch: TokenBatch, low: float = 0.4, high: float = 0.4) -> Tensor:
    values = []
    for row in rows(batch):
        a = row["advantage"][0]
        sign = 1.0 if a > 0 else -1.0
        product = torch.ones((), dtype=torch.float64)
        for r in torch.exp(row["logp"] - row["logp_old"]):
            powered = r**sign
            product = product * torch.minimum(powered, powered.clamp(math.exp(-low), math.exp(high)))
        values.append(a * product ** (sign / len(row["logp"])))
    return -torch.stack(values).mean()


def split_by_entropy(entropy: Tensor, shares: list[float]) -> list[list[int]]:
    """Groups of token positions; shares are cumulative from the top."""
    order = sorted(range(len(entropy)), key=lambda t: (-entropy[t].item(), t))
    edges = [0, *(math.ceil(round(share * len(order), 9)) for share in shares), len(order)]
    return [order[a:b] for a, b in pairwise(edges) if b > a]


def ref_espo(
    batch: TokenBatch,
    alpha: float = 0.02,
    shares: list[float] | None = None,
    times_token: bool = False,
    epsilon: float | None = None,
    floor: float = 0.0,
) -> Tensor:
    values = []
    for row in rows(batch):
        groups = []
        for positions in split_by_entropy(row["entropy_old"], [0.2] if shares is None else shares):
            logp, old = row["logp"][positions], row["logp_old"][positions]
            s_group = (logp - old).mean().exp().detach()
            s = s_group * torch.exp(logp) / (torch.exp(old) if times_token else torch.exp(logp).detach())
            eps = alpha * row["entropy_old"][positions].mean().item() / math.log(VOCAB) if epsilon is None else epsilon
            eps = max(eps, floor) if epsilon is None else eps
            groups.append(ppo(s, row["advantage"][positions], eps, eps).mean())
        values.append(torch.stack(groups).mean())
    return -torch.stack(values).mean()


CASES: list[tuple[str, dict[str, Any], Callable[[TokenBatch], Tensor]]] = [
    ("grpo", {}, ref_grpo),
    ("grpo", {"clip_low": 0.1, "clip_high": 0.05}, lambda b: ref_grpo(b, 0.1, 0.05)),
    ("grpo", {"max_tokens": 20}, lambda b: ref_grpo(b, max_tokens=20)),
    ("dapo", {}, ref_dapo),
    ("gspo", {}, ref_gspo),
    ("gspo", {"clip_low": 0.05, "clip_high": 0.02}, lambda b: ref_gspo(b, 0.05, 0.02)),
    ("cispo", {}, ref_cispo),
    ("cispo", {"clip_low": 0.1, "clip_high": 0.2}, lambda b: ref_cispo(b, 0.1, 0.2)),
    ("gmpo", {}, ref_gmpo),
    ("gmpo", {"clip_low": 0.1, "clip_high": 0.15}, lambda b: ref_gmpo(b, 0.1, 0.15)),
    ("espo", {}, ref_espo),
    ("espo", {"alpha": 0.5, "top_fraction": 0.35}, lambda b: ref_espo(b, 0.5, [0.35])),
    ("espo", {"alpha": 0.3, "epsilon_floor": 0.2}, lambda b: ref_espo(b, 0.3, floor=0.2)),
    ("espo", {"epsilon": 0.1, "ratio": "group_times_token"}, lambda b: ref_espo(b, epsilon=0.1, times_token=True)),
    ("espo", {"alpha": 0.4, "boundaries": [0.25, 0.6, 0.9]}, lambda b: ref_espo(b, 0.4, [0.1, 0.4, 0.75])),
]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("name", "options", "reference"), CASES)
def test_value_and_gradient_are_those_of_the_paper(
    name: str, options: dict[str, Any], reference: Callable[[TokenBatch], Tensor], seed: int
) -> None:
    batch = make_batch(seed=seed)
    loss, expected = loss_of(objective(name, **options)(batch)), reference(batch)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient(loss, batch), gradient(expected, batch), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("name", "options", "reference"), CASES)
def test_float32_is_close_to_float64(
    name: str, options: dict[str, Any], reference: Callable[[TokenBatch], Tensor]
) -> None:
    wide = make_batch()
    narrow = make_batch(dtype=torch.float64)
    fields = ("logp", "logp_old", "advantage", "entropy_old", "logp_rollout", "logp_ref")
    narrow = replace(narrow, **{f: getattr(wide, f).detach().float() for f in fields})
    terms = objective(name, **options)(narrow)
    assert terms.numerator.dtype == torch.float32
    torch.testing.assert_close(loss_of(terms).double(), reference(wide).detach(), rtol=2e-5, atol=2e-6)


# Smooth in logp where nothing is detached and nothing sits on a clip bound: the numerator's true derivative.
@pytest.mark.parametrize(
    ("name", "options"),
    [("grpo", {"clip_low": 0.9, "clip_high": 9.0}), ("dapo", {}), ("gmpo", {"clip_high": 9.0, "clip_low": 9.0})],
)
def test_gradient_is_the_finite_difference(name: str, options: dict[str, Any]) -> None:
    batch = make_batch(seed=4)
    policy = objective(name, kl=0.1, **options)
    assert torch.autograd.gradcheck(
        lambda logp: policy(replace(batch, logp=logp)).numerator, batch.logp.detach().requires_grad_()
    )


def test_gspo_token_form_has_the_finite_difference_gradient_of_the_sequence_form() -> None:
    batch = make_batch(seed=5)
    grad = gradient(loss_of(objective("gspo", clip_low=0.9, clip_high=9.0)(batch)), batch)
    base = batch.logp.detach()
    for t in range(len(base)):
        step = torch.zeros_like(base)
        step[t] = 1e-6
        up, down = (ref_gspo(replace(batch, logp=base + sign * step), 0.9, 9.0) for sign in (1, -1))
        assert abs((up - down).item() / 2e-6 - grad[t].item()) < 1e-7


# --- ESPO's limits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("one_group", [{"top_fraction": 1.0}, {"boundaries": ()}])
@pytest.mark.parametrize("epsilon", [3e-4, 0.05, 0.3])
def test_espo_of_one_group_is_gspo(one_group: dict[str, Any], epsilon: float) -> None:
    batch = make_batch(seed=6)
    espo = loss_of(objective("espo", epsilon=epsilon, **one_group)(batch))
    gspo = loss_of(objective("gspo", clip_low=epsilon, clip_high=epsilon)(batch))
    torch.testing.assert_close(espo, gspo, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient(espo, batch), gradient(gspo, batch), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("epsilon", [0.01, 0.2])
def test_espo_of_single_token_groups_is_grpo(epsilon: float) -> None:
    batch = make_batch(seed=7)
    longest = max(LENGTHS)
    boundaries = [k / longest for k in range(1, longest)]
    espo = loss_of(objective("espo", epsilon=epsilon, boundaries=boundaries)(batch))
    grpo = loss_of(objective("grpo", clip_low=epsilon, clip_high=epsilon)(batch))
    torch.testing.assert_close(espo, grpo, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient(espo, batch), gradient(grpo, batch), rtol=1e-12, atol=1e-15)


def test_espo_does_not_see_the_order_inside_a_group() -> None:
    batch = make_batch([10], seed=8)
    assert batch.entropy_old is not None
    low = torch.argsort(batch.entropy_old)[:8]  # ⌈20 % of 10⌉ = 2 tokens are high
    shuffled = torch.arange(10)
    shuffled[low] = low[torch.randperm(8, generator=torch.Generator().manual_seed(1))]
    logp = batch.logp.detach()
    moved = replace(batch, logp=logp[shuffled].requires_grad_(), logp_old=batch.logp_old[shuffled])
    espo = objective("espo", alpha=0.3)
    loss, loss_moved = loss_of(espo(batch)), loss_of(espo(moved))
    torch.testing.assert_close(loss, loss_moved, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient(loss, batch)[shuffled], gradient(loss_moved, moved), rtol=1e-12, atol=0)


def test_espo_breaks_entropy_ties_by_position() -> None:
    batch = replace(make_batch([10], seed=9), entropy_old=torch.ones(10, dtype=torch.float64))
    other = replace(batch, entropy_old=torch.tensor([2.0, 2.0] + [1.0] * 8, dtype=torch.float64))
    espo = objective("espo", epsilon=0.1)
    assert loss_of(espo(batch)).item() == loss_of(espo(other)).item()


@pytest.mark.parametrize(("tokens", "high"), [(1, 1), (5, 1), (6, 2), (10, 2), (11, 3), (30, 6)])
def test_espo_high_group_is_a_fifth_rounded_up(tokens: int, high: int) -> None:
    metrics = objective("espo")(make_batch([tokens])).metrics
    assert metrics["entropy/high"][1].item() == high
    assert metrics["entropy/low"][1].item() == tokens - high


# --- batching ---------------------------------------------------------------------------------------------------------


def select(batch: TokenBatch, sequences: list[int]) -> TokenBatch:
    index = torch.cat([(batch.seq == s).nonzero().squeeze(1) for s in sequences])
    names = ("logp", "logp_old", "advantage", "entropy_old", "logp_rollout", "logp_ref")
    seq = torch.cat([torch.full((int((batch.seq == s).sum()),), i) for i, s in enumerate(sequences)])
    return replace(
        batch, seq=seq.to(torch.int64), num_seqs=len(sequences), **{n: getattr(batch, n)[index] for n in names}
    )


@pytest.mark.parametrize("name", list(OBJECTIVES))
@given(order=st.permutations(range(6)), cuts=st.sets(st.integers(1, 5)), filler=st.integers(0, 3))
@settings(max_examples=8, deadline=None)
def test_splitting_into_micro_batches_changes_nothing(name: str, order: list[int], cuts: set[int], filler: int) -> None:
    batch = make_batch()
    policy = objective(name, correction=correction("tis"), kl=0.01)
    whole = policy(batch)
    edges = [0, *sorted(cuts), 6]
    parts = [policy(select(batch, list(order[a:b]))) for a, b in pairwise(edges)]
    parts.append(policy(replace(select(batch, [order[0]]), num_seqs=1 + filler)))
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


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_token_order_across_sequences_changes_nothing(name: str) -> None:
    batch = make_batch()
    interleaved = torch.argsort(torch.cat([torch.arange(n) for n in LENGTHS]), stable=True)
    names = ("logp", "logp_old", "advantage", "seq", "entropy_old", "logp_rollout", "logp_ref")
    mixed = replace(batch, **{n: getattr(batch, n)[interleaved] for n in names})
    policy = objective(name)
    torch.testing.assert_close(policy(batch).numerator, policy(mixed).numerator, rtol=1e-12, atol=1e-14)


# --- the edges --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(OBJECTIVES))
@pytest.mark.parametrize("num_seqs", [0, 3])
def test_no_tokens_at_all(name: str, num_seqs: int) -> None:
    empty = torch.zeros(0, requires_grad=True)
    batch = TokenBatch(
        empty, empty.detach(), empty.detach(), torch.zeros(0, dtype=torch.int64), num_seqs, empty.detach(), vocab_size=9
    )
    terms = objective(name)(batch)
    assert terms.numerator.tolist() == terms.denominator.tolist() == [0.0] * num_seqs
    assert terms.loss().item() == 0.0
    torch.autograd.backward(terms.loss())
    assert metric_values(terms.metrics) == {}


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_non_finite_tokens_are_as_if_absent_and_counted(name: str) -> None:
    batch = make_batch()
    assert batch.entropy_old is not None and batch.logp_rollout is not None
    bad = [0, 4, 9, 20, 30]  # token 0 is the whole of sequence 0
    fields = ["logp", "logp_old", "advantage", "entropy_old", "logp_rollout"]
    broken = {}
    for field, token, value in zip(fields, bad, [math.nan, math.inf, -math.inf, math.nan, -math.inf], strict=True):
        broken[field] = getattr(batch, field).detach().clone()
        broken[field][token] = value
    broken["logp"].requires_grad_()
    kept = [t for t in range(len(batch.seq)) if t not in bad]
    names = ("logp", "logp_old", "advantage", "seq", "entropy_old", "logp_rollout", "logp_ref")
    clean = replace(batch, **{n: getattr(batch, n)[kept] for n in names})
    policy = objective(name, correction=correction("mis"), kl=0.1)
    got_batch = replace(batch, **broken)
    got, expected = policy(got_batch), policy(clean)
    torch.testing.assert_close(got.numerator, expected.numerator, rtol=1e-12, atol=0)
    assert got.denominator.tolist() == expected.denominator.tolist()
    assert got.denominator[0].item() == 0.0
    grad = gradient(got.loss(), got_batch)
    assert grad.isfinite().all() and grad[bad].abs().sum().item() == 0.0
    assert got.metrics["nonfinite"].tolist() == [5.0, float(len(batch.seq))]


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_all_masked(name: str) -> None:
    batch = make_batch()
    terms = objective(name)(replace(batch, logp_old=torch.full_like(batch.logp_old, math.nan)))
    assert terms.numerator.abs().sum().item() == terms.denominator.sum().item() == 0.0
    assert gradient(terms.loss(), batch).tolist() == [0.0] * len(batch.seq)


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
    )


@pytest.mark.parametrize("name", list(OBJECTIVES))
@given(batch=extreme_batches(), weighing=st.sampled_from(["none", "tis", "mis", "icepop", "geo"]))
@settings(max_examples=20, deadline=None)
def test_extreme_inputs_stay_finite(name: str, batch: TokenBatch, weighing: str) -> None:
    terms = objective(name, correction=correction(weighing))(batch)
    assert terms.numerator.isfinite().all() and terms.denominator.isfinite().all()
    assert gradient(terms.loss(), batch).isfinite().all()
    assert all(math.isfinite(value) for value in metric_values(terms.metrics).values())
    if name == "espo":
        times = objective(name, ratio="group_times_token")(batch)
        assert times.numerator.isfinite().all() and gradient(times.loss(), batch).isfinite().all()


def test_bf16_input_is_widened_before_the_ratio() -> None:
    batch = make_batch()
    narrow = replace(batch, logp=batch.logp.detach().bfloat16(), logp_old=batch.logp_old.bfloat16())
    assert objective("espo")(narrow).numerator.dtype == torch.float32


# --- KL, bypass, shaping, metrics -------------------------------------------------------------------------------------


def test_kl_is_k3_to_the_reference_averaged_like_the_objective() -> None:
    batch = make_batch()
    with_kl, without = loss_of(objective("grpo", kl=0.3)(batch)), loss_of(objective("grpo")(batch))
    expected = []
    for row in rows(batch):
        x = row["logp_ref"] - row["logp"]
        expected.append((torch.exp(x) - x - 1).mean())
    reference = 0.3 * torch.stack(expected).mean()
    torch.testing.assert_close(with_kl - without, reference, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        gradient(with_kl, batch) - gradient(without, batch), gradient(reference, batch), rtol=1e-9, atol=1e-12
    )


def test_old_rollout_compares_with_the_engine() -> None:
    batch = make_batch()
    assert batch.logp_rollout is not None
    expected = ref_grpo(replace(batch, logp_old=batch.logp_rollout))
    torch.testing.assert_close(loss_of(objective("grpo", old="rollout")(batch)), expected)


def test_zero_variance_shaping_of_the_papers_example() -> None:
    entropy = torch.tensor([1.0, 3.0, 2.0, 5.0])
    seq = torch.tensor([0, 0, 1, 1])
    shaped = zero_variance_advantage(entropy, seq, 3, torch.tensor([True, False, True]))
    torch.testing.assert_close(shaped, torch.tensor([0.1, 0.3, -0.3, 0.0]))


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


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("ppo", {}, r"'ppo'.*espo, grpo, dapo, gspo, cispo, gmpo"),
        ("grpo", {"alpha": 1}, r"'grpo'.*'alpha'.*clip_low, clip_high"),
        ("espo", {"ratio": "token"}, r"'token'.*'group' or 'group_times_token'"),
        ("espo", {"top_fraction": 0.0}, r"top_fraction is 0.0"),
        ("espo", {"boundaries": [0.9, 0.5]}, r"boundaries are \[0.9, 0.5\]"),
        ("espo", {"alpha": -1.0}, r"alpha is -1.0"),
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


def test_missing_fields_are_named() -> None:
    batch = make_batch()
    gone: dict[str, Any]
    for policy, field in [
        (objective("espo"), "entropy_old"),
        (objective("espo", top_fraction=1.0), "vocab_size"),
        (objective("grpo", correction=correction("tis")), "logp_rollout"),
        (objective("grpo", old="rollout"), "logp_rollout"),
        (objective("grpo", kl=0.1), "logp_ref"),
    ]:
        gone = {field: None}
        with pytest.raises(ValueError, match=field):
            policy(replace(batch, **gone))


def test_espo_of_one_group_with_fixed_range_needs_no_entropy() -> None:
    batch = replace(make_batch(), entropy_old=None, vocab_size=None)
    assert objective("espo", top_fraction=1.0, epsilon=0.1)(batch).numerator.isfinite().all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"logp_old": torch.zeros(3)}, r"logp_old has shape \[3\]"),
        ({"seq": torch.zeros(38)}, r"seq has dtype torch.float32"),
        ({"seq": torch.full((38,), 6)}, r"from 6 to 6.*0 to 5"),
        ({"num_seqs": -1}, r"num_seqs is -1"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(make_batch(), **change)
