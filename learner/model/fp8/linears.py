"""Linear layers in FP8: each `nn.Linear` below the decoder layers becomes the engine's, with the same parameters."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from torch import Tensor, nn

from learner.errors import ModelError
from learner.model.fp8.engine import TILE, Engine


def swap_linears(model: nn.Module, engine: Engine) -> tuple[str, ...]:
    """Swap the decoder layers' linear layers in place; returns their names, in the model's order.

    A layer whose sizes are not multiples of 32 stays in bf16. ModelError: no layer was swapped.
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
    # Each layer opens the context itself: backward recomputes layers outside the context around the model.
    made.forward = partial(_in_whole_tiles, made.forward, engine.autocast)
    return made  # type: ignore[no-any-return]


def _in_whole_tiles(
    forward: Callable[[Tensor], Tensor], autocast: Callable[[], AbstractContextManager[None]], hidden: Tensor
) -> Tensor:
    """`forward` on `[..., tokens, features]`, with tokens padded by rows of zeros to a multiple of 32."""
    tokens = hidden.shape[-2]
    missing = -tokens % TILE
    with autocast():
        if not missing:
            return forward(hidden)
        return forward(nn.functional.pad(hidden, (0, 0, 0, missing)))[..., :tokens, :]
