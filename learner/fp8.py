"""FP8 training on CUDA: the decoder's linear layers become Transformer Engine's, the checkpoint stays Hugging Face's.

    require_transformer_engine("cuda")
    names = swap_linears(model, TransformerEngine("block"))     # before fully_shard

Only `nn.Linear` below the decoder layers is swapped: attention, and the dense or shared MLPs. Embedding, head and norms
stay in bf16 as they do in every published FP8 recipe; routers and fused experts are parameters of their own and not
`nn.Linear` in transformers 5, so experts compute in bf16: giving them FP8 means another experts implementation
(Transformer Engine's `GroupedLinear`), which is an extension point and not here.

A swapped layer keeps the very `Parameter` objects under the same names, so optimizer, checkpoints, published weights
and FSDP see the model as it was. Each opens the FP8 context for itself, because backward recomputes layers outside of
any context around the model. CUDA alone can run it; structure, names and the round trip are tested on the CPU.
"""

import importlib.util
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Final, Literal, Protocol

from torch import Tensor, nn

from learner.errors import ModelError

Fp8Recipe = Literal["block", "delayed"]

TILE: Final = 16
"""FP8 matrix products take sizes that are multiples of 16, the number of tokens included."""


class Engine(Protocol):
    """Where the swapped layers come from, and the context in which they compute."""

    def linear(self, linear: nn.Linear) -> nn.Module:
        """A layer of the same sizes, with parameters `weight` and, where the given one has it, `bias`.

        Their values do not matter: they are replaced.
        """

    def autocast(self) -> AbstractContextManager[None]:
        """Entered around each forward pass of one layer."""


def require_transformer_engine(device: str) -> None:
    """ModelError, one sentence, where `learner.precision = "fp8"` cannot run."""
    if device != "cuda":
        raise ModelError(
            f"precision 'fp8' trains through transformer-engine on CUDA, and this process runs on the "
            f"{device.upper()}; use bf16 or f32"
        )
    if importlib.util.find_spec("transformer_engine") is None:
        raise ModelError(
            "precision 'fp8' needs transformer-engine, which is not installed (extra [cuda]); use bf16 or f32"
        )


class TransformerEngine:
    """Transformer Engine's layers under one recipe.

    `block`: scales of 128 x 128 weight and 1 x 128 activation blocks, computed anew each time, so nothing but the
    parameters is state. `delayed`: one scale a tensor from the maxima of past steps; that history is not in the
    checkpoint, so a resumed run is not bit-identical.
    """

    def __init__(self, recipe: Fp8Recipe) -> None:
        self._pytorch = importlib.import_module("transformer_engine.pytorch")
        recipes = importlib.import_module("transformer_engine.common.recipe")
        self._recipe = recipes.Float8BlockScaling() if recipe == "block" else recipes.DelayedScaling()

    def linear(self, linear: nn.Linear) -> nn.Module:
        """Transformer Engine's layer of the sizes of `linear`, without memory of its own."""
        made: nn.Module = self._pytorch.Linear(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            params_dtype=linear.weight.dtype,
            device="meta",
        )
        return made

    def autocast(self) -> AbstractContextManager[None]:
        """Within it Transformer Engine's layers compute in FP8."""
        context: AbstractContextManager[None] = self._pytorch.fp8_autocast(enabled=True, fp8_recipe=self._recipe)
        return context


def swap_linears(model: nn.Module, engine: Engine) -> tuple[str, ...]:
    """Swap the decoder layers' linear layers in place; their names in the model, in its order.

    A layer whose sizes are not multiples of 16 stays. ModelError: none was swapped, so FP8 would be FP8 in name only.
    """
    causal: Any = model
    swapped: list[str] = []
    for prefix, parent in causal.model.layers.named_modules(prefix="model.layers"):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child.in_features % TILE == 0 and child.out_features % TILE == 0:
                setattr(parent, name, _in_place_of(child, engine))
                swapped.append(f"{prefix}.{name}")
    if not swapped:
        raise ModelError(
            f"precision 'fp8' found no linear layer in {type(model).__name__} whose sizes are multiples of {TILE}; "
            f"use bf16 or f32"
        )
    return tuple(swapped)


def _in_place_of(linear: nn.Linear, engine: Engine) -> nn.Module:
    made: Any = engine.linear(linear)
    made.weight = linear.weight
    if linear.bias is not None:
        made.bias = linear.bias
    made.forward = partial(_in_whole_tiles, made.forward, engine.autocast)
    return made  # type: ignore[no-any-return]


def _in_whole_tiles(
    forward: Callable[[Tensor], Tensor], autocast: Callable[[], AbstractContextManager[None]], hidden: Tensor
) -> Tensor:
    """`forward` on `[..., tokens, features]` with tokens filled up by rows of zeros, which no gradient sees."""
    tokens = hidden.shape[-2]
    missing = -tokens % TILE
    with autocast():
        if not missing:
            return forward(hidden)
        return forward(nn.functional.pad(hidden, (0, 0, 0, missing)))[..., :tokens, :]
