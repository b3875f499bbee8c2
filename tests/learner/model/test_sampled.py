"""Rollouts of which not every token was sampled: packed, and trained by the papers' formulas on the sampled ones."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from learner.losses import TokenBatch, objective
from learner.model.packed_row import Rollout, pack_rollouts
from learner.model.policy import Policy, load_model
from learner.router_replay import replayed
from learner.settings import LearnerSettings
from tests.learner.losses import papers
from tests.learner.losses.papers import Data, Paper

VOCABULARY = 32
MASKS = ((1, 1, 0, 0, 1), (1,), (0, 1, 1, 1, 0, 0), (1, 1, 1), (1, 0, 1, 0, 1, 0, 1, 1))


def drawn(prompt: int, mask: tuple[int, ...], generator: torch.Generator) -> Rollout:
    """A rollout with routes for every token, given ones too, and log-probs of 0 where nothing was sampled."""
    length = prompt + len(mask)
    sampled = torch.tensor(mask, dtype=torch.bool)
    return Rollout(
        rollout_id="r",
        tokens=torch.randint(3, VOCABULARY, (length,), generator=generator),
        prompt_tokens=prompt,
        logp_rollout=torch.where(sampled, -3.4 + 0.3 * torch.randn(len(mask), generator=generator), 0.0),
        routes=torch.rand(length, 2, 4, generator=generator).topk(2).indices.to(torch.int16),
        advantage=float(torch.randn((), generator=generator)),
        reward=0.0,
        sampled=None if all(mask) else sampled,
    )


def rollouts() -> list[Rollout]:
    generator = torch.Generator().manual_seed(4)
    return [drawn(2 + index % 3, mask, generator) for index, mask in enumerate(MASKS)]


@given(st.lists(st.tuples(st.integers(1, 4), st.lists(st.booleans(), max_size=6)), min_size=1, max_size=6))
def test_only_sampled_tokens_are_targets_and_all_tokens_are_context(shapes: list[tuple[int, list[bool]]]) -> None:
    made: list[Rollout] = []
    targets: list[int] = []
    logps: list[float] = []
    for prompt, mask in shapes:
        tokens = torch.arange(prompt + len(mask)) + 100 * len(made)
        logp = torch.arange(float(len(mask))) - 50 * len(made)
        sampled = torch.tensor(mask, dtype=torch.bool)
        made.append(Rollout("r", tokens, prompt, logp, None, float(len(made)), 0.0, sampled=sampled))
        targets += tokens[prompt:][sampled].tolist()
        logps += logp[sampled].tolist()
    row = pack_rollouts(made)
    assert len(row.tokens) == sum(row.lengths) == sum(prompt + len(mask) for prompt, mask in shapes)
    assert row.targets.tolist() == targets and row.logp_rollout.tolist() == logps
    assert torch.equal(row.tokens[row.predictors + 1], row.targets)
    assert row.seq.bincount(minlength=len(made)).tolist() == [sum(mask) for _, mask in shapes]
    assert torch.equal(row.advantage, row.seq.to(torch.float32))


def test_a_mask_of_ones_is_no_mask() -> None:
    plain = replace(rollouts()[0], sampled=None)
    ones = replace(plain, sampled=torch.ones(5, dtype=torch.bool))
    for name, value in vars(pack_rollouts([plain])).items():
        other = getattr(pack_rollouts([ones]), name)
        assert torch.equal(value, other) if isinstance(value, Tensor) else value == other, name
    assert plain.sampled_tokens == ones.sampled_tokens == 5 and rollouts()[0].sampled_tokens == 3


def batch_of(row: Any, logp: Tensor, entropy: Tensor) -> TokenBatch:
    """The row's tokens as the trainer gives them to an objective, with an old policy that is not the present one."""
    noise = torch.randn(len(logp), generator=torch.Generator().manual_seed(9))
    return TokenBatch(
        logp=logp,
        logp_old=logp.detach() + 0.2 * noise,
        advantage=row.advantage,
        seq=row.seq,
        num_seqs=row.num_seqs,
        entropy_old=entropy.detach(),
        logp_rollout=row.logp_rollout,
        vocab_size=VOCABULARY,
        logp_ref=logp.detach() - 0.1 * noise,
    )


def gradients(model: Any) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module")
def policy(learner_directory: Path) -> Policy:
    return Policy(load_model(learner_directory / "model", LearnerSettings(model="m")), chunk_tokens=4)


def of_the_policy(policy: Policy, name: str, options: dict[str, Any], made: list[Rollout]) -> dict[str, Tensor]:
    """Gradients of the objective on all rollouts in one packed row, under their routes."""
    policy.zero_grad()
    row = pack_rollouts(made)
    assert row.routes is not None
    with replayed(policy.model, row.routes):
        terms = objective(name, **options)(batch_of(row, *policy(row)))
    torch.autograd.backward(terms.loss())
    return gradients(policy.model)


@pytest.mark.parametrize(
    ("name", "options", "paper"),
    [
        ("grpo", {}, papers.grpo()),
        ("grpo", {"max_tokens": 20}, papers.dr_grpo(20)),
        ("dapo", {}, papers.dapo()),
        ("gspo", {"clip_low": 0.05, "clip_high": 0.02}, papers.gspo(0.05, 0.02)),
        ("cispo", {}, papers.cispo()),
        ("gmpo", {}, papers.gmpo()),
        ("espo", {"alpha": 0.5, "top_fraction": 0.35}, papers.espo(alpha=0.5, shares=(0.35,))),
    ],
)
def test_the_gradient_is_the_papers_over_sampled_tokens(
    policy: Policy, learner_directory: Path, name: str, options: dict[str, Any], paper: Paper
) -> None:
    made = rollouts()
    model: Any = load_model(learner_directory / "model", LearnerSettings(model="m", attention="sdpa"))
    logps, entropies, seq, advantages, recorded = [], [], [], [], []
    for index, rollout in enumerate(made):
        assert rollout.routes is not None
        with replayed(model, rollout.routes):
            whole = model(rollout.tokens.unsqueeze(0), use_cache=False).logits[0].log_softmax(-1)
        for at in range(rollout.prompt_tokens, len(rollout.tokens)):
            n = at - rollout.prompt_tokens
            if MASKS[index][n] == 0:
                continue
            before = whole[at - 1]
            logps.append(before[rollout.tokens[at]])
            entropies.append(-(before.exp() * before).sum().detach())
            seq.append(index)
            advantages.append(rollout.advantage)
            recorded.append(float(rollout.logp_rollout[n]))
    assert len(logps) == sum(map(sum, MASKS))
    logp = torch.stack(logps)
    row = replace(
        pack_rollouts(made),
        seq=torch.tensor(seq),
        advantage=torch.tensor(advantages),
        logp_rollout=torch.tensor(recorded),
    )
    data, values = Data.of(batch_of(row, logp, torch.stack(entropies))), logp.detach().double().numpy()
    logp.backward(torch.from_numpy(papers.slopes(paper, data, values)).to(logp.dtype))  # type: ignore[no-untyped-call]
    expected, got = gradients(model), of_the_policy(policy, name, options, made)
    assert any(float(gradient.abs().max()) > 1e-3 for gradient in expected.values())
    for parameter, gradient in got.items():
        torch.testing.assert_close(gradient, expected[parameter], atol=2e-5, rtol=2e-3, msg=parameter)


@pytest.mark.parametrize("name", ["grpo", "dapo", "gspo", "cispo", "gmpo", "espo"])
def test_what_was_given_at_the_end_is_neither_trained_nor_counted(policy: Policy, name: str) -> None:
    """Given tokens with nothing sampled after them are context of nothing: without them all is the same."""
    made = rollouts()
    last = made[2]
    assert last.routes is not None and last.sampled is not None
    short = replace(
        last,
        tokens=last.tokens[:-2],
        logp_rollout=last.logp_rollout[:-2],
        routes=last.routes[:-2],
        sampled=last.sampled[:-2],
    )
    cut = [short if rollout is last else rollout for rollout in made]
    whole, without = of_the_policy(policy, name, {}, made), of_the_policy(policy, name, {}, cut)
    for parameter, gradient in whole.items():
        torch.testing.assert_close(gradient, without[parameter], atol=1e-6, rtol=1e-4, msg=parameter)


def test_what_was_given_in_between_is_context(policy: Policy) -> None:
    """Another answer of the tool is another gradient: later tokens were sampled after it."""
    made = rollouts()
    other = made[0].tokens.clone()
    other[made[0].prompt_tokens + 2] = 3 + (other[made[0].prompt_tokens + 2] - 2) % 29
    changed = [replace(made[0], tokens=other), *made[1:]]
    first, second = of_the_policy(policy, "grpo", {}, made), of_the_policy(policy, "grpo", {}, changed)
    assert any(not torch.allclose(first[name], second[name], atol=1e-5) for name in first)
    assert np.isfinite([float(gradient.sum()) for gradient in second.values()]).all()
