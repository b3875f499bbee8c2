"""Each family trained as the learner trains it, against the stock model one sequence at a time; and published."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from learner.model.policy import load_model, stored_tensors
from learner.router_replay import replayed
from learner.settings import SUPPORTED, LearnerSettings
from tests.learner.conftest import Zygote, run_ranks
from tests.learner.router_replay.families import FAMILIES, SHAPES, build_family, rollouts
from tests.learner.router_replay.family_ranks import CASES

EXACT = [case for case in CASES if "bf16" not in case]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds a model directory of each family."""
    directory = tmp_path_factory.mktemp("families")
    for family in FAMILIES:
        build_family(family, directory / family)
    return directory


@pytest.fixture(scope="module")
def results(zygote: Zygote, directory: Path) -> list[dict[str, Any]]:
    """By rank: family → case → metrics."""
    return [each["families"] for each in run_ranks(zygote, 2, directory, ["families"])]


def reference(directory: Path, family: str, replay: bool) -> dict[str, Tensor]:
    """The gradient of GRPO's first update, one sequence after the other through the stock model."""
    model: Any = load_model(directory / family, LearnerSettings(model="m", attention="sdpa"))
    drawn = rollouts(family)
    for rollout in drawn:
        routes = rollout.routes
        if routes is None or not replay:
            shape = SHAPES[family]
            routes = torch.full((len(rollout.tokens), shape.moe_layers, shape.top_k), -1)
        with replayed(model, routes):
            logits = model(rollout.tokens.unsqueeze(0), use_cache=False).logits[0].log_softmax(-1)
        logp = logits[rollout.prompt_tokens - 1 : -1].gather(1, rollout.tokens[rollout.prompt_tokens :, None])
        torch.autograd.backward(-rollout.advantage * logp.mean() / len(drawn))
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_all_supported_families_are_here() -> None:
    assert tuple(FAMILIES) == SUPPORTED


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_the_stock_models(family: str, directory: Path, results: list[dict[str, Any]]) -> None:
    expected = {replay: reference(directory, family, replay) for replay in (True, False)}
    routers = [name for name in expected[True] if name.endswith("mlp.gate.weight")]
    assert len(routers) == SHAPES[family].moe_layers
    # Replay matters to every router, so that a case that left it out would be seen.
    for name in routers:
        assert (expected[True][name] - expected[False][name]).abs().max() > 1e-3, name
    for case in EXACT:
        got = load_file(directory / family / f"gradients, {case}.st")
        wanted = expected["rollout" in case]
        assert got.keys() == wanted.keys()
        for name, gradient in got.items():
            torch.testing.assert_close(gradient, wanted[name], atol=1e-5, rtol=1e-4, msg=f"{case}: {name}")


@pytest.mark.parametrize("family", FAMILIES)
def test_both_passes_are_routed_alike(family: str, results: list[dict[str, Any]]) -> None:
    for case in CASES:
        metrics = results[0][family][case]
        assert metrics["skipped_updates"] == 0, case
        # The proximal pass and the update's, recomputed, are the same to the last bit: the ratio is one.
        assert metrics["ratio"] == metrics["ratio_max"] == 1.0 and metrics["policy_k3"] == 0.0, case
        assert 0.2 < metrics["replay/flip_share"] <= 1 and metrics["replay/k3_on"] != metrics["replay/k3_off"], case
        assert metrics["loss"] == pytest.approx(results[0][family][EXACT[0]]["loss"], abs=1e-6), case
        norm = results[0][family][f"{case.partition(',')[0]}, eager" if case != "off, grouped_mm" else "old, eager"]
        assert metrics["grad_norm"] == pytest.approx(norm["grad_norm"], rel=0.1 if "bf16" in case else 1e-4), case


@pytest.mark.parametrize("family", FAMILIES)
def test_published_weights_are_a_model_directory(
    family: str, directory: Path, results: list[dict[str, Any]], tmp_path: Path
) -> None:
    published = tmp_path / "published"
    shutil.copytree(directory / family / "published, rollout, eager", published)
    shutil.copy(directory / family / "config.json", published)
    assert stored_tensors(published) == stored_tensors(directory / family)
    trained = load_file(directory / family / "weights, rollout, eager.st")
    start: Any = load_model(directory / family, LearnerSettings(model="m"))
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(published, dtype=torch.float32)
    before, after = start.state_dict(), loaded.state_dict()
    assert trained.keys() == dict(loaded.named_parameters()).keys()
    for name, tensor in after.items():
        if name in trained:
            assert torch.equal(tensor, trained[name].to(torch.bfloat16).float()), name
            assert not torch.equal(tensor, before[name]), f"{name} was not trained"
        else:
            # DeepSeek's correction bias: no gradient moves it, and rounding must not either.
            assert name.endswith("e_score_correction_bias") and torch.equal(tensor, before[name]), name
    assert sum(name.endswith("correction_bias") for name in after) == (2 if family == "deepseek_v3" else 0)
