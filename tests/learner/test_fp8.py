"""What FP8 training changes in a model, as far as a CPU can tell: structure, names, gradients, the published form."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import torch
from torch import Tensor, nn

from learner.errors import ModelError
from learner.fp8 import TILE, require_transformer_engine, swap_linears
from learner.policy import load_model, mixed_precision, stored_tensors
from learner.settings import LearnerSettings
from learner.weights import stored_form

REPOSITORY = Path(__file__).parents[2]
TINY = REPOSITORY / "models" / "tiny-moe"
SETTINGS = LearnerSettings(model=str(TINY), attention="sdpa")


class Layer(nn.Module):
    """The shape of Transformer Engine's Linear: own parameters of given sizes, and a refusal of ragged products."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty_like(linear.weight, device="meta"))
        self.register_parameter("bias", None)
        if linear.bias is not None:
            self.bias = nn.Parameter(torch.empty_like(linear.bias, device="meta"))

    def forward(self, hidden: Tensor) -> Tensor:
        assert InPlain.inside, "a layer that computes outside of the FP8 context"
        assert hidden.shape[-2] % TILE == 0, "an FP8 product of ragged size"
        return nn.functional.linear(hidden, self.weight, cast("Tensor | None", self.bias))


class InPlain:
    """An engine that computes in the tensors' own precision, and sees whether its context is open."""

    inside = False

    def linear(self, linear: nn.Linear) -> nn.Module:
        return Layer(linear)

    @contextmanager
    def autocast(self) -> Iterator[None]:
        InPlain.inside = True
        yield
        InPlain.inside = False


def test_attention_is_swapped_and_what_must_stay_exact_is_not() -> None:
    model: Any = load_model(TINY, SETTINGS)
    names = swap_linears(model, InPlain())
    assert set(names) == {
        f"model.layers.{layer}.self_attn.{name}_proj" for layer in range(len(model.model.layers)) for name in "qkvo"
    }
    assert all(isinstance(model.get_submodule(name), Layer) for name in names)
    assert type(model.lm_head) is nn.Linear
    assert not any(isinstance(module, Layer) for layer in model.model.layers for module in layer.mlp.modules())


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("tokens", [1, TILE, TILE + 3])
def test_a_swapped_model_has_the_gradients_and_names_of_the_stock_one(tokens: int, recompute: bool) -> None:
    stock, swapped = load_model(TINY, SETTINGS), load_model(TINY, SETTINGS)
    before = dict(swapped.named_parameters())
    swap_linears(swapped, InPlain())
    after = dict(swapped.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before), "the optimizer would hold other tensors"
    ids = torch.arange(tokens)[None] % 60
    if recompute:
        cast("Any", swapped).train().activation_checkpointing_enable({"use_reentrant": False})
    for model in (stock, swapped):
        cast("Any", model)(ids, use_cache=False).logits.square().mean().backward()
    for name, parameter in stock.named_parameters():
        if parameter.grad is None:
            assert after[name].grad is None
        else:
            torch.testing.assert_close(after[name].grad, parameter.grad, atol=1e-6, rtol=1e-5)


def test_the_published_form_is_hugging_faces(tmp_path: Path) -> None:
    swapped: Any = load_model(TINY, SETTINGS)
    swap_linears(swapped, InPlain())
    stored = stored_tensors(TINY)
    written = stored_form(swapped, dict(swapped.named_parameters()), stored)
    assert {name: tuple(tensor.shape) for name, tensor in written.items()} == stored
    stock: Any = load_model(TINY, SETTINGS)
    expected = stored_form(stock, dict(stock.named_parameters()), stored)
    assert all(torch.equal(written[name], expected[name]) for name in stored)


def test_a_model_without_a_fitting_layer_is_refused() -> None:
    model: Any = nn.Module()
    model.model = nn.Module()
    model.model.layers = nn.ModuleList([nn.Linear(24, 24)])
    with pytest.raises(ModelError, match="no linear layer in Module whose sizes are multiples of 16"):
        swap_linears(model, InPlain())


def test_fp8_needs_cuda_and_transformer_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="on CUDA, and this process runs on the CPU; use bf16 or f32"):
        mixed_precision("fp8", "cpu")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="needs transformer-engine, which is not installed"):
        require_transformer_engine("cuda")


def test_an_unknown_recipe_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="fp8_recipe"):
        msgspec.convert({"model": "m", "fp8_recipe": "tensor"}, LearnerSettings)


def test_delayed_scaling_and_recomputation_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="would count the maxima of recomputed layers twice"):
        LearnerSettings(model="m", precision="fp8", fp8_recipe="delayed", recompute=True)
