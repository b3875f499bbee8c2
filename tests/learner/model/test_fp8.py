"""What FP8 training changes in a model, as far as a CPU can tell: structure, names, gradients, the published form."""

from pathlib import Path
from typing import Any, Literal, cast

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from learner.errors import ModelError
from learner.model.fp8 import TILE, compute_in_fp8, require_transformer_engine
from learner.model.fp8.experts import grouped, swap_experts
from learner.model.fp8.linears import swap_linears
from learner.model.policy import load_model, mixed_precision, stored_tensors
from learner.router_replay import replayed
from learner.settings import LearnerSettings
from learner.weights import stored_form
from learner.weights.gather import stored_buffers
from tests.learner.conftest import run_ranks
from tests.learner.model.fp8_engine import Grouped, InPlain, Layer
from tests.learner.router_replay.families import COMMON, FAMILIES, build_family
from tests.learner.settings import learner_settings

REPOSITORY = Path(__file__).parents[3]
TINY = REPOSITORY / "models" / "tiny-moe"
SETTINGS = LearnerSettings(model=str(TINY), attention="sdpa")


def close(found: Tensor | None, expected: Tensor | None, name: str) -> None:
    """But for the order in which products and experts are summed."""
    assert found is not None and expected is not None, name
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max(), name


def test_attention_and_experts_are_swapped_and_what_must_stay_exact_is_not() -> None:
    model: Any = load_model(TINY, SETTINGS)
    layers = range(len(model.model.layers))
    names = compute_in_fp8(model, InPlain())
    attention = {f"model.layers.{layer}.self_attn.{name}_proj" for layer in layers for name in "qkvo"}
    assert set(names) == attention | {f"model.layers.{layer}.mlp.experts" for layer in layers}
    assert all(isinstance(model.get_submodule(name), Layer) for name in attention)
    assert type(model.lm_head) is nn.Linear
    assert not any(isinstance(module, Layer) for layer in model.model.layers for module in layer.mlp.gate.modules())
    assert not any(isinstance(module, Grouped) for module in model.modules()), "its weights would be parameters"


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("tokens", [1, TILE, TILE + 3])
@pytest.mark.parametrize("experts", ["eager", "grouped_mm"])
def test_a_swapped_model_has_the_gradients_and_names_of_the_stock_one(
    tokens: int, recompute: bool, experts: Literal["eager", "grouped_mm"]
) -> None:
    stock = load_model(TINY, msgspec.structs.replace(SETTINGS, experts=experts))
    swapped = load_model(TINY, SETTINGS)
    before = dict(swapped.named_parameters())
    compute_in_fp8(swapped, InPlain())
    after = dict(swapped.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before), "the optimizer would hold other tensors"
    ids = torch.arange(tokens)[None] % 60
    if recompute:
        cast("Any", swapped).train().activation_checkpointing_enable({"use_reentrant": False})
    for model in (stock, swapped):
        cast("Any", model)(ids, use_cache=False).logits.square().mean().backward()
    for name, parameter in stock.named_parameters():
        assert (after[name].grad is None) == (parameter.grad is None), name
        if parameter.grad is not None:
            close(after[name].grad, parameter.grad, name)


def test_the_published_form_is_hugging_faces() -> None:
    swapped: Any = load_model(TINY, SETTINGS)
    compute_in_fp8(swapped, InPlain())
    stored = stored_tensors(TINY)
    assert any(name.endswith("_extra_state") for name in swapped.state_dict()), (
        "nothing that could be published wrongly"
    )
    written = stored_form(swapped, dict(swapped.named_parameters()) | stored_buffers(swapped), stored)
    assert {name: tuple(tensor.shape) for name, tensor in written.items()} == stored
    stock: Any = load_model(TINY, SETTINGS)
    expected = stored_form(stock, dict(stock.named_parameters()), stored)
    assert all(torch.equal(written[name], expected[name]) for name in stored)


def test_buffers_of_a_checkpoint_are_published_and_others_are_not(tmp_path: Path) -> None:
    build_family("deepseek_v3", tmp_path)
    model: Any = load_model(tmp_path, SETTINGS)
    assert len(dict(model.named_buffers())) > 2, "nothing that is not of the checkpoint"
    buffers = stored_buffers(model)
    assert list(buffers) == [f"model.layers.{layer}.mlp.gate.e_score_correction_bias" for layer in (1, 2)]
    live = dict(model.named_buffers())
    for name, buffer in buffers.items():
        assert torch.equal(buffer, live[name]) and buffer.data_ptr() != live[name].data_ptr()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_familys_experts_compute_what_transformers_do(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their gate weights are of other dtypes, and DeepSeek adds shared experts and a dense layer."""
    for size in ("hidden_size", "intermediate_size"):
        monkeypatch.setitem(COMMON, size, 64)
    monkeypatch.setitem(FAMILIES, family, (FAMILIES[family][0], FAMILIES[family][1] | {"moe_intermediate_size": 32}))
    build_family(family, tmp_path)
    stock: Any = load_model(tmp_path, SETTINGS)
    swapped: Any = load_model(tmp_path, SETTINGS)
    assert len(swap_experts(swapped, InPlain())) == 2
    ids = torch.arange(11)[None]
    for model in (stock, swapped):
        model(ids, use_cache=False).logits.square().mean().backward()
    for (name, expected), found in zip(stock.named_parameters(), swapped.parameters(), strict=True):
        close(found.grad, expected.grad, name)


def test_replayed_routes_steer_swapped_experts() -> None:
    stock: Any = load_model(TINY, SETTINGS)
    swapped: Any = load_model(TINY, SETTINGS)
    compute_in_fp8(swapped, InPlain())
    ids = torch.arange(9)[None] % 60
    routes = torch.rand(9, 3, 8, generator=torch.Generator().manual_seed(0)).topk(2).indices
    native = swapped(ids, use_cache=False).logits
    with replayed(stock, routes):
        expected = stock(ids, use_cache=False).logits
    with replayed(swapped, routes) as replay:
        found = swapped(ids, use_cache=False).logits
    assert replay.flips().flipped.sum() > 0 and not torch.allclose(found, native, atol=1e-3)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_pass_is_one_step_of_the_scales_history() -> None:
    model: Any = load_model(TINY, SETTINGS)
    compute_in_fp8(model, InPlain())
    before = InPlain.passes
    for _ in range(3):
        model(torch.arange(5)[None], use_cache=False)
    assert InPlain.passes - before == 3


def test_swapped_layers_train_under_fsdp(zygote: Any, tmp_path: Path) -> None:
    """Two ranks, recomputation, replayed routes, packed rows: the same step, and publication in the stored names."""
    first, second = (results["swapped"] for results in run_ranks(zygote, 2, tmp_path, ["swapped"]))
    assert first["f32, swapped"]["modules"] == 15 and first["f32, swapped"]["published"]
    for name in ("loss", "grad_norm", "replay/k3_on", "replay/flip_share", "entropy"):
        assert first["f32, swapped"][name] == pytest.approx(first["f32, stock"][name], rel=1e-4), name
        assert first["f32, swapped"][name] == second["f32, swapped"][name]
        assert first["bf16, swapped"][name] == pytest.approx(first["bf16, stock"][name], rel=0.1, abs=0.01), name
    assert first["f32, swapped"]["replay/flip_share"] > 0.5


@given(
    ids=st.lists(st.lists(st.integers(0, 6), min_size=2, max_size=2, unique=True), max_size=70),
    multiple=st.sampled_from([1, 8, 32]),
)
@settings(deadline=None, max_examples=60)
def test_rows_lie_by_expert_in_the_order_of_the_tokens_and_fill_whole_tiles(
    ids: list[list[int]], multiple: int
) -> None:
    grouping = grouped(torch.tensor(ids, dtype=torch.int64).reshape(-1, 2), 7, multiple)
    flat = [expert for chosen in ids for expert in chosen]
    assert len(grouping.splits) == 7 and len(set(grouping.rows.tolist())) == len(flat)
    first = 0
    for expert, split in enumerate(grouping.splits):
        load = flat.count(expert)
        assert split % multiple == 0 and load <= split < load + multiple
        mine = [row for row, chosen in zip(grouping.rows.tolist(), flat, strict=True) if chosen == expert]
        assert mine == list(range(first, first + load))
        first += split


def test_experts_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    build_family("qwen3_moe", tmp_path)
    with pytest.raises(ModelError, match=r"mlp\.experts\.down_proj is \[4, 32, 16\]; use bf16 or f32"):
        swap_experts(load_model(tmp_path, SETTINGS), InPlain())
    model: Any = load_model(TINY, SETTINGS)
    model.model.layers[1].mlp.experts.is_transposed = True
    with pytest.raises(ModelError, match=r"does not compute experts as those of model\.layers\.1\.mlp\.experts"):
        swap_experts(model, InPlain())


def test_a_model_without_a_fitting_layer_is_refused() -> None:
    model: Any = nn.Module()
    model.model = nn.Module()
    model.model.layers = nn.ModuleList([nn.Linear(24, 24)])
    with pytest.raises(ModelError, match="no linear layer in Module whose sizes are multiples of 32"):
        swap_linears(model, InPlain())


def test_fp8_needs_cuda_and_transformer_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="on CUDA, and this process runs on the CPU; use bf16 or f32"):
        mixed_precision("fp8", "cpu")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="needs transformer-engine, which is not installed"):
        require_transformer_engine("cuda")


def test_an_unknown_recipe_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="fp8_recipe"):
        learner_settings(fp8_recipe="tensor")


def test_delayed_scaling_and_recomputation_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="would count the maxima of recomputed layers twice"):
        learner_settings(precision="fp8", fp8_recipe="delayed", activation_checkpointing=True)
