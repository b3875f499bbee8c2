"""Where FP8 layers come from: Transformer Engine, behind the few things that the swaps need of it."""

import importlib
from contextlib import AbstractContextManager
from typing import Final, Literal, Protocol

import torch
from torch import nn

Fp8Recipe = Literal["block", "delayed"]

TILE: Final = 32
"""Rows and sizes of FP8 products are multiples of this. Hopper takes 16; on Blackwell Transformer Engine computes block
scales as MXFP8, whose blocks are of 32, along the tokens too where they are summed over."""


class Engine(Protocol):
    """Layers of given sizes, whose own weights do not matter: others are put or lent in their place."""

    def linear(self, linear: nn.Linear) -> nn.Module:
        """A layer of the same sizes, with parameters `weight` and, where the given one has it, `bias`."""

    def grouped_linear(self, products: int, in_features: int, out_features: int, dtype: torch.dtype) -> nn.Module:
        """`forward(rows [M, in], splits) -> [M, out]`, `splits` being how many rows each product takes, with
        parameters `weight0`, `weight1`, …, `[out, in]` each, and without bias."""

    def autocast(self) -> AbstractContextManager[None]:
        """Entered around each forward pass of a layer, and around the model's; may be entered again inside."""


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

    def grouped_linear(self, products: int, in_features: int, out_features: int, dtype: torch.dtype) -> nn.Module:
        """Transformer Engine's grouped layer of these sizes, without memory of its own."""
        made: nn.Module = self._pytorch.GroupedLinear(
            products, in_features, out_features, bias=False, params_dtype=dtype, device="meta"
        )
        return made

    def autocast(self) -> AbstractContextManager[None]:
        """Within it Transformer Engine's layers compute in FP8."""
        # Older versions know the second name alone; newer ones warn of it.
        if hasattr(self._pytorch, "autocast"):
            context: AbstractContextManager[None] = self._pytorch.autocast(enabled=True, recipe=self._recipe)
        else:
            context = self._pytorch.fp8_autocast(enabled=True, fp8_recipe=self._recipe)
        return context
