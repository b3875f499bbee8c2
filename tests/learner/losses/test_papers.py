"""Every objective's value and gradient are those of its paper: float64 references and finite differences."""

from typing import Any

import numpy as np
import pytest
import torch

from learner.losses import OBJECTIVES, objective
from tests.learner.losses import papers
from tests.learner.losses.loss_batches import PER_TOKEN, changed, gradient, loss_of, make_batch
from tests.learner.losses.papers import Data, Paper

CASES: list[tuple[str, dict[str, Any], Paper]] = [
    ("grpo", {}, papers.grpo()),
    ("grpo", {"clip_low": 0.1, "clip_high": 0.05}, papers.grpo(0.1, 0.05)),
    ("grpo", {"max_tokens": 20}, papers.dr_grpo(20)),
    ("dapo", {}, papers.dapo()),
    ("dapo", {"clip_low": 0.02, "clip_high": 0.3}, papers.dapo(0.02, 0.3)),
    ("gspo", {}, papers.gspo()),
    ("gspo", {"clip_low": 0.05, "clip_high": 0.02}, papers.gspo(0.05, 0.02)),
    ("cispo", {}, papers.cispo()),
    ("cispo", {"clip_low": 0.1, "clip_high": 0.2}, papers.cispo(0.1, 0.2)),
    ("gmpo", {}, papers.gmpo()),
    ("gmpo", {"clip_low": 0.1, "clip_high": 0.15}, papers.gmpo(0.1, 0.15)),
    ("espo", {}, papers.espo()),
    ("espo", {"alpha": 0.5, "top_fraction": 0.35}, papers.espo(alpha=0.5, shares=(0.35,))),
    ("espo", {"alpha": 0.3, "epsilon_floor": 0.2}, papers.espo(alpha=0.3, floor=0.2)),
    ("espo", {"alpha": 0.3, "ratio": "group_times_token"}, papers.espo(alpha=0.3, times_token=True)),
    ("espo", {"epsilon": 0.1, "ratio": "group_times_token"}, papers.espo(epsilon=0.1, times_token=True)),
    ("espo", {"clip_low": 0.03, "clip_high": 0.2}, papers.espo(clip=(0.03, 0.2))),
    ("espo", {"alpha": 0.4, "boundaries": [0.25, 0.6, 0.9]}, papers.espo(alpha=0.4, shares=(0.1, 0.4, 0.75))),
    ("espo", {"boundaries": [0.8]}, papers.espo()),
]
# With an advantage for each token, as the shaping of unanimous groups gives them, GSPO is its token form.
BY_TOKEN: list[tuple[str, dict[str, Any], Paper]] = [
    ("gspo", {"clip_low": 0.05, "clip_high": 0.02}, papers.gspo_token(0.05, 0.02)),
    *(case for case in CASES if case[0] not in ("gspo", "gmpo")),
]


def check(name: str, options: dict[str, Any], paper: Paper, seed: int, token_advantages: bool) -> None:
    batch = make_batch(seed=seed, token_advantages=token_advantages)
    loss, data, logp = loss_of(objective(name, **options)(batch)), Data.of(batch), batch.logp.detach().numpy()
    assert loss.item() == pytest.approx(paper(data, logp, logp), rel=1e-10, abs=1e-12)
    np.testing.assert_allclose(gradient(loss, batch).numpy(), papers.slopes(paper, data, logp), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("name", "options", "paper"), CASES)
def test_value_and_gradient_are_those_of_the_paper(name: str, options: dict[str, Any], paper: Paper, seed: int) -> None:
    check(name, options, paper, seed, token_advantages=False)


@pytest.mark.parametrize(("name", "options", "paper"), BY_TOKEN)
def test_an_advantage_for_each_token(name: str, options: dict[str, Any], paper: Paper) -> None:
    check(name, options, paper, 3, token_advantages=True)


def test_the_cases_reach_both_sides_of_every_clip_range() -> None:
    """What is never clipped could not tell a wrong bound."""
    for name in OBJECTIVES:
        shown = objective(name)(make_batch(seed=0, spread=0.6)).metrics["clip_fraction"]
        assert 0 < shown[0] < shown[1] or name == "cispo", name


@pytest.mark.parametrize(("name", "options", "paper"), CASES)
def test_float32_is_close_to_float64(name: str, options: dict[str, Any], paper: Paper) -> None:
    wide = make_batch()
    narrow = changed(wide, **{field: getattr(wide, field).detach().float() for field in PER_TOKEN})
    terms = objective(name, **options)(narrow)
    assert terms.numerator.dtype == torch.float32
    logp = wide.logp.detach().numpy()
    assert loss_of(terms).item() == pytest.approx(paper(Data.of(wide), logp, logp), rel=2e-5, abs=2e-6)


def test_bf16_is_widened_before_the_ratio() -> None:
    batch = make_batch()
    narrow = changed(batch, logp=batch.logp.detach().bfloat16(), logp_old=batch.logp_old.bfloat16())
    assert objective("espo")(narrow).numerator.dtype == torch.float32


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_kl_is_k3_to_the_reference_averaged_as_the_objective_averages(name: str) -> None:
    batch = make_batch()
    data = Data.of(batch)

    def kl(d: Data, logp: papers.Array, held: papers.Array) -> float:
        each = papers.k3(d, logp)
        if name in ("dapo", "cispo"):
            return float(0.3 * each.mean())
        if name != "espo":
            return float(0.3 * np.mean([each[tokens].mean() for tokens in d.each()]))
        groups = [papers.entropy_groups(tokens, d.entropy, (0.2,)) for tokens in d.each()]
        return float(0.3 * np.mean([np.mean([each[group].mean() for group in some]) for some in groups]))

    with_kl, without = loss_of(objective(name, kl=0.3)(batch)), loss_of(objective(name)(batch))
    logp = batch.logp.detach().numpy()
    assert (with_kl - without).item() == pytest.approx(kl(data, logp, logp), rel=1e-9)
    slopes = (gradient(with_kl, batch) - gradient(without, batch)).numpy()
    np.testing.assert_allclose(slopes, papers.slopes(kl, data, logp), rtol=1e-6, atol=1e-9)


def test_kl_of_zero_costs_and_says_nothing() -> None:
    batch = changed(make_batch(), logp_ref=None)
    assert "kl_ref" not in objective("grpo", kl=0.0)(batch).metrics


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "espo"])
def test_old_rollout_compares_with_the_engine(name: str) -> None:
    batch = make_batch(seed=5)
    loss = loss_of(objective(name, old="rollout")(batch))
    paper: Paper = getattr(papers, name)()
    logp = batch.logp.detach().numpy()
    data = Data.of(changed(batch, logp_old=batch.logp_rollout))
    assert loss.item() == pytest.approx(paper(data, logp, logp), rel=1e-10)
    np.testing.assert_allclose(gradient(loss, batch).numpy(), papers.slopes(paper, data, logp), rtol=1e-6, atol=1e-9)
