"""Records the routes that a model's own routers choose, for router replay."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from learner.router_replay.families import MoeRouter, moe_routers
from learner.router_replay.recompute import is_recomputing


class RouteRecording:
    """Yielded by `recorded`; holds the routes of the last forward pass inside the context."""

    def __init__(self, routers: list[MoeRouter]) -> None:
        self._chosen: list[Tensor | None] = [None] * len(routers)

    @property
    def routes(self) -> Tensor:
        """Native routes, int64 `[tokens, moe_layers, top_k]`, on the model's device.

        Raises:
            ValueError: no forward pass ran through all MoE layers inside the context.
        """
        chosen = [layer for layer in self._chosen if layer is not None]
        if len(chosen) < len(self._chosen):
            raise ValueError(
                f"routes of {len(self._chosen) - len(chosen)} of {len(self._chosen)} MoE layers were not recorded: "
                f"no forward pass of the whole model ran inside recorded()."
            )
        return torch.stack(chosen, dim=1)

    def _keep(self, layer: int, experts: Tensor) -> None:
        if not is_recomputing():
            self._chosen[layer] = experts.detach()


@contextmanager
def recorded(model: nn.Module) -> Iterator[RouteRecording]:
    """Record the routes that the routers choose natively, also inside `replayed`, where the model uses others.

    Raises:
        ValueError: the model has no MoE layer, or one without an adapter.
    """
    routers = moe_routers(model)
    recording = RouteRecording(routers)

    def keep(layer: int, output: tuple[Tensor, Tensor, Tensor]) -> None:
        recording._keep(layer, output[2])

    # Run before router replay's hook, whichever context was entered first: that hook replaces the output's experts.
    handles = [
        router.module.register_forward_hook(
            lambda _m, _a, output, layer=router.layer: keep(layer, output), prepend=True
        )
        for router in routers
    ]
    try:
        yield recording
    finally:
        for handle in handles:
            handle.remove()
