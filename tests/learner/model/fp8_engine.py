"""An engine with the parameters of Transformer Engine's layers, and its refusals, that computes in plain precision."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from learner.model.fp8 import TILE


class Layer(nn.Module):
    """The shape of Transformer Engine's Linear: own parameters of given sizes, a state beside them, and a refusal of
    ragged products."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty_like(linear.weight, device="meta"))
        self.register_parameter("bias", None)
        if linear.bias is not None:
            self.bias = nn.Parameter(torch.empty_like(linear.bias, device="meta"))

    def get_extra_state(self) -> Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        pass

    def forward(self, hidden: Tensor) -> Tensor:
        assert InPlain.depth, "a layer that computes outside of the FP8 context"
        assert hidden.shape[-2] % TILE == 0, "an FP8 product of ragged size"
        return nn.functional.linear(hidden, self.weight, cast("Tensor | None", self.bias))


class Grouped(nn.Module):
    """The shape of Transformer Engine's GroupedLinear: `weight0`, `weight1`, …, and one count of rows for each."""

    def __init__(self, products: int, in_features: int, out_features: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.products = products
        for index in range(products):
            weight = torch.empty(out_features, in_features, dtype=dtype, device="meta")
            self.register_parameter(f"weight{index}", nn.Parameter(weight))

    def forward(self, rows: Tensor, splits: Sequence[int]) -> Tensor:
        assert InPlain.depth, "a layer that computes outside of the FP8 context"
        assert len(splits) == self.products and sum(splits) == len(rows)
        assert all(isinstance(count, int) and count % TILE == 0 for count in splits), "an FP8 product of ragged size"
        weights = [getattr(self, f"weight{index}") for index in range(self.products)]
        assert all(name.startswith("weight") and p.dtype == rows.dtype for name, p in self.named_parameters())
        parts = zip(torch.split(rows, list(splits)), weights, strict=True)
        return torch.cat([nn.functional.linear(part, weight) for part, weight in parts])


class InPlain:
    """An engine that computes in the tensors' own precision, and sees whether its context is open."""

    depth = 0
    passes = 0

    def linear(self, linear: nn.Linear) -> nn.Module:
        return Layer(linear)

    def grouped_linear(self, products: int, in_features: int, out_features: int, dtype: torch.dtype) -> nn.Module:
        return Grouped(products, in_features, out_features, dtype)

    @contextmanager
    def autocast(self) -> Iterator[None]:
        InPlain.depth += 1
        yield
        InPlain.depth -= 1
        # As Transformer Engine: what happened counts as one step of the scales' history when the outermost ends.
        InPlain.passes += InPlain.depth == 0
