"""Validation of routes before router replay uses them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from learner.router_replay.families import MoeRouter

NATIVE = -1
"""Expert id in every slot of a token and layer without a recorded route: the layer routes natively."""


def check_routes(routes: Tensor, routers: Sequence[MoeRouter]) -> None:
    """Raise ValueError unless `routes`, integers `[tokens, moe_layers, top_k]`, can be a recording of these routers.

    Within one token's slots of one layer the ids are distinct and in range, or all −1.
    """
    top_k, experts = routers[0].top_k, routers[0].num_experts
    if routes.dim() != 3 or routes.shape[1:] != (len(routers), top_k):
        raise ValueError(
            f"routes has shape {list(routes.shape)}, allowed is [tokens, {len(routers)}, {top_k}] "
            f"(MoE layers and experts per token of the model)."
        )
    if routes.dtype.is_floating_point or routes.dtype.is_complex or routes.dtype == torch.bool:
        raise ValueError(f"routes has dtype {routes.dtype}, allowed is an integer type.")
    if routes.numel() == 0:
        return
    low, high = int(routes.min()), int(routes.max())
    if low < NATIVE or high >= experts:
        raise ValueError(f"routes holds expert ids from {low} to {high}, allowed is {NATIVE} to {experts - 1}.")
    ordered = routes.sort(dim=-1).values
    recorded = ordered[..., -1] != NATIVE
    if bool((recorded & (ordered[..., 0] == NATIVE)).any()):
        raise ValueError(
            "routes holds a token with some experts recorded and some −1 in one layer, allowed is all or none."
        )
    if bool((recorded & (ordered[..., 1:] == ordered[..., :-1]).any(dim=-1)).any()):
        raise ValueError("routes holds a token with the same expert twice in one layer, allowed are distinct experts.")


def same_experts(routes: Tensor, other: Tensor) -> Tensor:
    """Whether two choices, integers `[T, k]` each, are the same set of experts: bool `[T]`."""
    return (routes.sort(dim=-1).values == other.sort(dim=-1).values).all(dim=-1)
