"""The real engine on a tiny random Qwen3-MoE: one engine serves the module; a fresh one is the updates' oracle."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import pytest_asyncio
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from producers.rollouts.engine import fp8
from producers.rollouts.engine.engine import RolloutEngine
from producers.rollouts.engine.errors import EngineDied, PromptRefused, WeightsRefused
from producers.rollouts.engine.settings import EngineSettings
from producers.rollouts.engine.weight_files import WeightFile
from schemas import Sampling

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(280),
    pytest.mark.asyncio(loop_scope="module"),
    # vLLM's, torch's and pyzmq's own; what this project does is held to no warnings elsewhere.
    pytest.mark.filterwarnings("default"),
]

PROMPT = [3, 4, 5, 6, 7, 8, 9, 10]
SCORED = [[3, 4, 5, 6] + [(7 * position * position + start) % 64 for position in range(40)] for start in range(4)]


@dataclass
class Models:
    first: Path
    second: Path
    """Rounded through FP8 blocks, so that an engine of either precision computes the same on it."""

    def weights(self, model: Path) -> list[WeightFile]:
        return [WeightFile(model / "model.safetensors")]


def make_model(directory: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    config = Qwen3MoeConfig(
        vocab_size=64,
        hidden_size=128,
        moe_intermediate_size=128,
        num_hidden_layers=4,
        mlp_only_layers=[1],
        intermediate_size=256,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        num_experts=8,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        tie_word_embeddings=False,
        max_position_embeddings=512,
        eos_token_id=1,
    )
    model = Qwen3MoeForCausalLM(config).to(torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                # Sharper than at initialisation, where every distribution is nearly flat and errors cannot be seen.
                parameter.mul_(3)
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    directory = tmp_path_factory.mktemp("models")
    made = Models(make_model(directory / "first", 0), make_model(directory / "second", 1))
    path = made.second / "model.safetensors"
    plain = load_file(path)
    save_file(
        {name: fp8.rounded(tensor) if fp8.is_quantized(name, tensor) else tensor for name, tensor in plain.items()},
        path,
        {"format": "pt"},
    )
    return made


def settings(model: Path, **changes: Any) -> EngineSettings:
    return EngineSettings(model=str(model), max_model_len=256, kv_cache_dtype="auto", **changes)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fresh_scores(models: Models) -> list[NDArray[np.float32]]:
    """What an engine that was started on the second model says."""
    engine = RolloutEngine(settings(models.second))
    await engine.start()
    try:
        return [await engine.score(ids) for ids in SCORED]
    finally:
        await engine.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(models: Models, fresh_scores: Any) -> AsyncIterator[RolloutEngine]:
    engine = RolloutEngine(settings(models.first, precision="fp8"))
    await engine.start(version=7)
    yield engine
    await engine.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def on_first(engine: RolloutEngine, models: Models) -> RolloutEngine:
    await engine.update_weights(7, models.weights(models.first))
    return engine


async def test_a_generation_is_complete(on_first: RolloutEngine) -> None:
    made = await on_first.generate(PROMPT, Sampling(max_tokens=12), "complete", ignore_eos=True)
    assert made.finish_reason == "length"
    assert made.response_ids.dtype == np.uint32 and made.response_ids.shape == (12,)
    assert made.logprobs.dtype == np.float32 and made.logprobs.shape == (12,)
    assert made.spans == ((0, 7),)
    assert made.routes is not None
    # Three of four layers have experts; the last sampled token never went through the model.
    assert made.routes.shape == (20, 3, 2) and made.routes.dtype == np.uint8
    assert (made.routes[-1] == 255).all() and (made.routes[:-1] < 8).all()
    assert made.started_s <= made.first_token_s <= made.finished_s <= made.started_s + 60


async def test_logprobs_are_those_of_the_sampled_tokens(on_first: RolloutEngine) -> None:
    made = await on_first.generate(PROMPT, Sampling(max_tokens=40), "scored", ignore_eos=True)
    scored = await on_first.score([*PROMPT, *made.response_ids.tolist()])
    # Decoding and prefilling round differently in bf16.
    assert np.abs(scored[len(PROMPT) - 1 :] - made.logprobs).mean() < 0.03


async def test_a_stop_token_ends_and_belongs_to_the_response(on_first: RolloutEngine) -> None:
    everything = range(64)
    made = await on_first.generate(PROMPT, Sampling(max_tokens=12), "stop", stop_token_ids=everything)
    assert made.finish_reason == "stop" and len(made.response_ids) == 1
    assert made.routes is not None and len(made.routes) == 9


async def test_a_seed_repeats_a_response(on_first: RolloutEngine) -> None:
    made = [
        await on_first.generate(PROMPT, Sampling(max_tokens=20), f"seed-{n}", seed=seed, ignore_eos=True)
        for n, seed in enumerate([5, 5, 6])
    ]
    assert np.array_equal(made[0].response_ids, made[1].response_ids)
    assert not np.array_equal(made[0].response_ids, made[2].response_ids)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [([], "prompt of 0"), ([1] * 250, "prompt of 250"), ([64], "outside the vocabulary of 64"), ([-1], "outside")],
)
async def test_prompts_that_can_never_run_are_refused(engine: RolloutEngine, prompt: list[int], message: str) -> None:
    with pytest.raises(PromptRefused, match=message):
        await engine.generate(prompt, Sampling(max_tokens=12), "refused")
    assert (await engine.health()).in_flight == 0


async def test_a_cancelled_request_leaves_the_engine(on_first: RolloutEngine) -> None:
    long = asyncio.create_task(on_first.generate(PROMPT, Sampling(max_tokens=240), "cancelled", ignore_eos=True))
    await on_first.generate(PROMPT, Sampling(max_tokens=1), "other")
    long.cancel()
    with pytest.raises(asyncio.CancelledError):
        await long
    assert (await on_first.health()).in_flight == 0
    await on_first.generate(PROMPT, Sampling(max_tokens=1), "cancelled")


async def test_after_an_update_scores_equal_those_of_a_fresh_engine(
    on_first: RolloutEngine, models: Models, fresh_scores: list[NDArray[np.float32]]
) -> None:
    before = [await on_first.score(ids) for ids in SCORED]
    update = await on_first.update_weights(8, models.weights(models.second))
    after = [await on_first.score(ids) for ids in SCORED]
    assert on_first.version == 8 and update.pause_s < 5
    for old, new, fresh in zip(before, after, fresh_scores, strict=True):
        assert np.abs(old - fresh).mean() > 0.5
        assert np.array_equal(new, fresh)


async def test_reloading_the_same_weights_changes_nothing(on_first: RolloutEngine, models: Models) -> None:
    before = [await on_first.score(ids) for ids in SCORED]
    await on_first.update_weights(7, models.weights(models.first))
    for old, ids in zip(before, SCORED, strict=True):
        assert np.array_equal(old, await on_first.score(ids))


async def test_tokens_are_attributed_to_the_weights_that_computed_them(on_first: RolloutEngine, models: Models) -> None:
    requests = [
        asyncio.create_task(on_first.generate(PROMPT, Sampling(max_tokens=200), f"span-{n}", ignore_eos=True))
        for n in range(24)
    ]
    await on_first.generate(PROMPT, Sampling(max_tokens=20), "trigger", ignore_eos=True)
    await on_first.update_weights(8, models.weights(models.second))
    late = await on_first.generate(PROMPT, Sampling(max_tokens=2), "late", ignore_eos=True)
    made = await asyncio.gather(*requests)
    assert late.spans == ((0, 8),)
    await on_first.update_weights(7, models.weights(models.first))
    last_of_old, first_of_new = [], []
    for generation in made:
        assert [span.version for span in generation.spans] == [7, 8]
        boundary = generation.spans[1].first_token
        assert 1 < boundary < 200
        assert generation.routes is not None and len(generation.routes) == len(PROMPT) + 200
        old = (await on_first.score([*PROMPT, *generation.response_ids.tolist()]))[len(PROMPT) - 1 :]
        difference = np.abs(old - generation.logprobs)
        assert difference[:boundary].mean() < 0.05
        last_of_old.append(difference[boundary - 1])
        first_of_new.append(difference[boundary])
    # One token too early or too late would show on either side of the boundary.
    assert np.median(last_of_old) < 0.1 < 0.3 < np.median(first_of_new)


async def test_refused_weights_change_nothing(on_first: RolloutEngine, models: Models, tmp_path: Path) -> None:
    before = await on_first.score(SCORED[0])
    path = tmp_path / "other.safetensors"
    tensors = load_file(models.second / "model.safetensors")
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:-1].clone()
    save_file(tensors, path)
    with pytest.raises(WeightsRefused, match=r"weights 9: 'lm_head.weight' has shape \[63, 128\]"):
        await on_first.update_weights(9, [WeightFile(path)])
    with pytest.raises(WeightsRefused, match="announced was ab"):
        await on_first.update_weights(9, [WeightFile(path, "ab")])
    assert on_first.version == 7
    assert np.array_equal(before, await on_first.score(SCORED[0]))


async def test_routes_agree_with_the_same_model_in_transformers(engine: RolloutEngine, models: Models) -> None:
    await engine.update_weights(8, models.weights(models.second))
    model = Qwen3MoeForCausalLM.from_pretrained(models.second, dtype=torch.bfloat16)
    agreeing = decisions = 0
    for n in range(8):
        made = await engine.generate([*PROMPT, n], Sampling(max_tokens=60), f"routes-{n}", ignore_eos=True)
        assert made.routes is not None
        ids = torch.tensor([[*PROMPT, n, *made.response_ids.tolist()]])
        with torch.no_grad():
            logits = model(ids, output_router_logits=True).router_logits
        native = torch.stack([layer.topk(2, dim=-1).indices.sort(-1).values for layer in logits], 1)[:-1].numpy()
        same = (np.sort(made.routes[:-1], axis=-1) == native).all(-1)
        agreeing, decisions = agreeing + int(same.sum()), decisions + same.size
    assert agreeing / decisions >= 0.95


def engine_cores() -> list[psutil.Process]:
    """Those below this process; what ends while it is looked at is none."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if "EngineCore" in " ".join(child.cmdline()):
                found.append(child)
    return found


async def test_a_killed_engine_core_is_one_typed_error(models: Models, engine: RolloutEngine) -> None:
    """Last in the module: nothing comes after it."""
    cores = engine_cores()
    request = asyncio.create_task(engine.generate(PROMPT, Sampling(max_tokens=240), "dying", ignore_eos=True))
    await engine.generate(PROMPT, Sampling(max_tokens=1), "other")
    assert len(cores) == 1
    os.kill(cores[0].pid, signal.SIGKILL)
    with pytest.raises(EngineDied):
        await request
    with pytest.raises(EngineDied):
        await engine.health()
    await engine.stop()
    assert engine_cores() == []
    with pytest.raises(EngineDied, match="was stopped"):
        await engine.generate(PROMPT, Sampling(max_tokens=1), "after")
