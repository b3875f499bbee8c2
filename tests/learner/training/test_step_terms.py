"""The KL term and the shaping of unanimous groups in real steps of two ranks, against one plain model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from learner.model.packed_row import Rollout
from learner.model.policy import load_model
from learner.router_replay import replayed
from learner.settings import LearnerSettings
from learner.training.step import Trainer
from tests.learner import rank_trainer


def plain(directory: Path, weights: Path | None = None) -> Any:
    """The test's model in one process, with other weights if given."""
    model = load_model(directory / "model", LearnerSettings(model="m", attention="sdpa"))
    if weights is not None:
        stored = load_file(weights)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(stored[name])
    return model


def response(model: Any, rollout: Rollout) -> tuple[Tensor, Tensor]:
    """log-probs and entropies of the response's sampled tokens."""
    logp = model(rollout.tokens.unsqueeze(0), use_cache=False).logits[0].log_softmax(-1)
    sampled = rank_trainer.sampled_of(rollout)
    logp = logp[rollout.prompt_tokens - 1 : -1][sampled]
    targets = rollout.tokens[rollout.prompt_tokens :][sampled]
    return logp.gather(1, targets[:, None]).squeeze(1), -(logp.exp() * logp).sum(-1)


def test_kl_to_the_model_the_run_began_with(learner_directory: Path, two_ranks: list[dict[str, Any]]) -> None:
    reference, policy = plain(learner_directory), plain(learner_directory, learner_directory / "kl.safetensors")
    each = []
    rollouts = rank_trainer.sequences(1)
    with torch.no_grad():
        for rollout in rollouts:
            native = torch.full((len(rollout.tokens), 2, 2), -1, dtype=torch.int16)
            logps = []
            for model in (reference, policy):
                with replayed(model, native if rollout.routes is None else rollout.routes):
                    logps.append(response(model, rollout)[0])
            x = logps[0] - logps[1]
            each.append(torch.exp(x) - 1 - x)
    for results in two_ranks:
        first, second = results["kl"]["first"], results["kl"]["second"]
        # A policy that has not moved is its own reference, bit for bit, in bf16 too.
        assert first["kl_ref"] == 0.0 and results["kl"]["bf16"]["kl_ref"] == 0.0
        assert second["kl_ref"] == pytest.approx(torch.cat(each).mean().item(), rel=1e-3)
        assert second["kl_ref"] > 1e-4
        # One update a batch: every ratio is 1, so that the objective alone is the mean advantage.
        gain = sum(rollout.advantage for rollout in rollouts) / len(rollouts)
        kl = torch.stack([tokens.mean() for tokens in each]).mean().item()
        assert second["loss"] == pytest.approx(0.5 * kl - gain, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("old", ["proximal", "rollout"])
def test_unanimous_groups_are_trained_on_by_entropy(
    old: str, learner_directory: Path, two_ranks: list[dict[str, Any]]
) -> None:
    model = plain(learner_directory)
    drawn = [rank_trainer.unanimous(rollout) for rollout in rank_trainer.sequences(0)]
    for rollout in drawn:
        logp, entropy = response(model, rollout)
        entropy = entropy.detach()
        advantage = torch.full_like(entropy, rollout.advantage)
        if rollout.unanimous == "correct":
            advantage = 0.3 * entropy
        elif rollout.unanimous == "wrong":
            advantage = -0.3 * (entropy.max() - entropy)
        recorded = rollout.logp_rollout[rank_trainer.sampled_of(rollout)]
        ratio = torch.exp(logp - (logp.detach() if old == "proximal" else recorded))
        gain = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.28) * advantage)
        torch.autograd.backward(-gain.mean() / len(drawn))
    norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
    for results in two_ranks:
        assert results["shaped"][old]["grad_norm"] == pytest.approx(norm, rel=1e-4)
        assert results["shaped"][old]["shaped"] == pytest.approx(8 / 12)


def test_corrections_are_metrics_of_the_step(two_ranks: list[dict[str, Any]]) -> None:
    shown = two_ranks[0]["modes"]["espo"]
    assert 0 <= shown["correction/rejected"] <= 1 and 0 <= shown["correction/clipped"] <= 1
    assert shown["correction/ratio_max"] > 0 and 0 < shown["correction/weight"] <= 2


def test_a_coefficient_goes_with_a_reference() -> None:
    with pytest.raises(ValueError, match=r"kl_coefficient 0.1 goes with a reference"):
        Trainer(None, None, LearnerSettings(model="m", kl_coefficient=0.1), None)  # type: ignore[arg-type]
