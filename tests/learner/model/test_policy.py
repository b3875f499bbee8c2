"""Packed rows equal one sequence at a time, in every supported family; other directories are refused."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import modeling_flash_attention_utils as flash

from learner.device_check import likely_device, require_attention
from learner.errors import ModelError
from learner.model.packed_row import Rollout, pack_rollouts
from learner.model.policy import Policy, load_model, mixed_precision, model_shape, stored_tensors
from learner.settings import SUPPORTED, LearnerSettings
from learner.weights import stored_form
from tests.learner.router_replay.families import SHAPES, build_family

SETTINGS = LearnerSettings(model="m")
STOCK = LearnerSettings(model="m", attention="sdpa")


@pytest.fixture(scope="module", params=SUPPORTED)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp(request.param)
    build_family(request.param, path)
    return path


def sequences() -> list[Rollout]:
    generator = torch.Generator().manual_seed(1)
    lengths = [(3, 5), (1, 1), (6, 2), (2, 9)]
    return [
        Rollout("r", torch.randint(1, 48, (p + r,), generator=generator), p, torch.zeros(r), None, 1.0, 0.0)
        for p, r in lengths
    ]


def run(policy: Policy, rollouts: list[list[Rollout]]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Log-probs and entropies of all micro-batches in order, and the gradient of a weighted sum of them."""
    policy.zero_grad()
    outputs = [policy(pack_rollouts(micro)) for micro in rollouts]
    logp, entropy = (torch.cat(parts) for parts in zip(*outputs, strict=True))
    torch.autograd.backward((logp * torch.linspace(-1, 1, len(logp))).sum())
    return logp, entropy, {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("attention", ["packed", "sdpa", "eager"])
def test_packed_equals_the_stock_attention_one_sequence_at_a_time(
    directory: Path, train: bool, attention: Literal["packed", "sdpa", "eager"]
) -> None:
    settings = msgspec.structs.replace(SETTINGS, attention=attention)
    packed = run(Policy(load_model(directory, settings), chunk_tokens=4).train(train), [sequences()])
    stock = Policy(load_model(directory, STOCK), chunk_tokens=4).train(train)
    alone = run(stock, [[rollout] for rollout in sequences()])
    torch.testing.assert_close(packed[0], alone[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(packed[1], alone[1], atol=1e-5, rtol=1e-5)
    assert packed[2].keys() == alone[2].keys() and packed[2]
    for name, gradient in packed[2].items():
        torch.testing.assert_close(gradient, alone[2][name], atol=1e-5, rtol=1e-5, msg=name)


def varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    softmax_scale: float | None = None,
    causal: bool = False,
    deterministic: bool = False,
) -> Tensor:
    """What flash-attn's `flash_attn_varlen_func` computes, `[T, heads, d]`, one sequence after the other."""
    assert causal and deterministic and cu_seqlens_q.dtype == torch.int32
    ends = cu_seqlens_q.tolist()
    assert cu_seqlens_k.tolist() == ends
    assert max(end - start for start, end in pairwise(ends)) == max_seqlen_q == max_seqlen_k
    assert isinstance(max_seqlen_q, int)
    parts = []
    for start, end in pairwise(ends):
        one, two, three = (states[None, start:end].transpose(1, 2) for states in (q, k, v))
        parts.append(
            scaled_dot_product_attention(one, two, three, is_causal=True, scale=softmax_scale, enable_gqa=True)
        )
    return torch.cat([part[0].transpose(0, 1) for part in parts])


def test_flash_attention_is_passed_the_boundaries(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through transformers' own path down to the kernel, which a CPU implementation replaces."""
    process = flash._lazy_define_process_function(varlen)
    kernel = ((None, varlen, None, None, None), (process, None))
    monkeypatch.setattr(flash, "lazy_import_flash_attention", lambda *_: kernel)
    model: Any = load_model(directory, STOCK)
    model.config._attn_implementation = "flash_attention_2"
    packed = run(Policy(model, chunk_tokens=4), [sequences()])
    stock = Policy(load_model(directory, STOCK), chunk_tokens=4)
    alone = run(stock, [[rollout] for rollout in sequences()])
    torch.testing.assert_close(packed[0], alone[0], atol=1e-5, rtol=1e-5)
    for name, gradient in packed[2].items():
        torch.testing.assert_close(gradient, alone[2][name], atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("attention", "precision", "device", "sentence"),
    [
        ("flash_attention_2", "bf16", "cpu", "attention 'flash_attention_2' trains on CUDA, .* on the CPU; use packed"),
        ("flex_attention", "f32", "cpu", "attention 'flex_attention' trains on CUDA, .* on the CPU; use packed"),
        ("flash_attention_2", "f32", "cuda", "computes in 16 bits, and precision is 'f32'"),
        ("flash_attention_2", "bf16", "cuda", "needs the package flash-attn"),
    ],
)
def test_attention_that_cannot_train_here_is_refused(
    attention: str, precision: str, device: str, sentence: str
) -> None:
    with pytest.raises(ModelError, match=sentence):
        require_attention(attention, precision, device)
    for works in ("packed", "sdpa", "eager"):
        require_attention(works, "f32", "cpu")


def test_the_device_is_guessed_as_torch_finds_it() -> None:
    assert likely_device() == ("cuda" if torch.cuda.is_available() else "cpu")


def test_log_probs_are_those_of_the_stock_model(directory: Path) -> None:
    model: Any = load_model(directory, STOCK)
    (row,) = [pack_rollouts([rollout]) for rollout in sequences()[:1]]
    logp, entropy = Policy(model, chunk_tokens=3)(row)
    logits = model(row.tokens.unsqueeze(0), use_cache=False).logits[0, row.predictors].log_softmax(-1)
    torch.testing.assert_close(logp, logits.gather(1, row.targets[:, None])[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy, -(logits.exp() * logits).sum(-1), atol=1e-5, rtol=1e-5)


def test_a_rollout_is_trained_at_the_temperature_it_was_sampled_at(directory: Path) -> None:
    model: Any = load_model(directory, STOCK)
    cold, warm = (replace(rollout, temperature=t) for rollout, t in zip(sequences()[:2], (0.5, 2.0), strict=True))
    both = pack_rollouts([cold, warm])
    logp, entropy = Policy(load_model(directory, SETTINGS), chunk_tokens=3)(both)
    expected, spread = [], []
    for rollout in (cold, warm):
        row = pack_rollouts([rollout])
        logits = model(row.tokens.unsqueeze(0), use_cache=False).logits[0, row.predictors] / rollout.temperature
        tempered = logits.log_softmax(-1)
        expected.append(tempered.gather(1, row.targets[:, None])[:, 0])
        spread.append(-(tempered.exp() * tempered).sum(-1))
    torch.testing.assert_close(logp, torch.cat(expected), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy, torch.cat(spread), atol=1e-5, rtol=1e-5)


def test_the_shape_and_the_stored_names_are_the_models_own(directory: Path) -> None:
    model: Any = load_model(directory, SETTINGS)
    shape = model_shape(model, 40)
    assert shape == replace(SHAPES[model.config.model_type], max_tokens=40)
    assert model_shape(model, None).max_tokens == 64
    stored = stored_tensors(directory)
    assert {name: tuple(t.shape) for name, t in stored_form(model, model.state_dict(), stored).items()} == stored


def test_directories_that_cannot_be_trained_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_model(tmp_path, SETTINGS)
    (tmp_path / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    with pytest.raises(ModelError, match=r"is LlamaForCausalLM of model_type 'llama'; supported are .* qwen3_moe"):
        load_model(tmp_path, SETTINGS)
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_moe"}')
    with pytest.raises(ModelError, match="does not load"):
        load_model(tmp_path, SETTINGS)
    with pytest.raises(ModelError, match="no safetensors"):
        stored_tensors(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json that does not load"):
        load_model(tmp_path, SETTINGS)


def test_fp8_training_needs_cuda() -> None:
    with pytest.raises(ModelError, match="transformer-engine on CUDA, and this process runs on the CPU"):
        mixed_precision("fp8", "cpu")
    assert mixed_precision("f32", "cpu").param_dtype is None
    assert mixed_precision("bf16", "cpu").reduce_dtype is torch.float32
