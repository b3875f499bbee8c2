"""Makes FP8 layers: Transformer Engine, behind the small interface that the swaps need."""

import importlib
from contextlib import AbstractContextManager
from typing import Final, Literal, Protocol

import torch
from torch import nn

Fp8Recipe = Literal["block", "delayed"]

TILE: Final = 32
"""Rows and sizes of FP8 products must be multiples of this. Hopper needs 16; on Blackwell Transformer Engine computes
block scales as MXFP8, in blocks of 32, also along the tokens where a product sums over them."""


class Engine(Protocol):
    """Makes layers of given sizes. Their own weights are never used: the model's are put or lent in their place."""

    def linear(self, linear: nn.Linear) -> nn.Module:
        """A layer of the same sizes, with parameters `weight` and, where the given one has it, `bias`."""

    def grouped_linear(self, products: int, in_features: int, out_features: int, dtype: torch.dtype) -> nn.Module:
        """`forward(rows [M, in], splits) -> [M, out]`; `splits`: the number of rows of each product; with
        parameters `weight0`, `weight1`, …, `[out, in]` each, and without bias."""

    def autocast(self) -> AbstractContextManager[None]:
        """Entered around each forward pass of a layer, and around the model's; may be entered again inside."""


class TransformerEngine:
    """Transformer Engine's layers under one recipe.

    `block`: scales of 128 x 128 weight and 1 x 128 activation blocks, computed anew each time, so the parameters are
    the only state. `delayed`: one scale per tensor from the maxima of past steps; that history is not in the
    checkpoint, so a resumed run is not bit-identical.
    """

    def __init__(self, recipe: Fp8Recipe) -> None:
        self._pytorch = importlib.import_module("transformer_engine.pytorch")
        recipes = importlib.import_module("transformer_engine.common.recipe")
        self._recipe = recipes.Float8BlockScaling() if recipe == "block" else recipes.DelayedScaling()

    def linear(self, linear: nn.Linear) -> nn.Module:
        """Transformer Engine's layer with the sizes of `linear`, on the meta device."""
        made: nn.Module = self._pytorch.Linear(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            params_dtype=linear.weight.dtype,
            device="meta",
        )
        return made

    def grouped_linear(self, products: int, in_features: int, out_features: int, dtype: torch.dtype) -> nn.Module:
        """Transformer Engine's grouped layer of these sizes, on the meta device."""
        made: nn.Module = self._pytorch.GroupedLinear(
            products, in_features, out_features, bias=False, params_dtype=dtype, device="meta"
        )
        return made

    def autocast(self) -> AbstractContextManager[None]:
        """The context in which Transformer Engine's layers compute in FP8."""
        # Older versions have only `fp8_autocast`; newer ones deprecate it.
        if hasattr(self._pytorch, "autocast"):
            context: AbstractContextManager[None] = self._pytorch.autocast(enabled=True, recipe=self._recipe)
        else:
            context = self._pytorch.fp8_autocast(enabled=True, fp8_recipe=self._recipe)
        return context
