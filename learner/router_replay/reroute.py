"""Router replay: recorded experts in place of the router's choice, with gate weights from the router's own logits."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from learner.router_replay.families import MoeRouter, moe_routers
from learner.router_replay.recompute import bound_checkpoints, is_recomputing
from learner.router_replay.routes import NATIVE, check_routes, same_experts
from learner.router_replay.statistics import FlipStatistics

_installations: WeakKeyDictionary[nn.Module, list[object]] = WeakKeyDictionary()
"""The router replays installed on each router, of which the last one applies. There may be several: a recomputation may
run inside another router replay's context, and the first pass of a checkpointed layer has its context's and its own."""


class RouterReplay:
    """Yielded by `replayed`: the routes that its forward passes use, and counts of what native routing would choose."""

    def __init__(self, routers: Sequence[MoeRouter], routes: Tensor) -> None:
        check_routes(routes, routers)
        self._routers = routers
        self._routes = routes
        self._flipped: dict[int, Tensor] = {}
        self._decisions: dict[int, Tensor] = {}
        self._native: dict[int, Tensor] = {}

    def flips(self) -> FlipStatistics:
        """Counts over the forward passes so far, without recomputations; int64 `[moe_layers]` on the model's device."""
        zero = torch.zeros((), dtype=torch.int64, device=next(iter(self._native.values()), self._routes).device)

        def by_layer(counts: dict[int, Tensor]) -> Tensor:
            return torch.stack([counts.get(router.layer, zero) for router in self._routers])

        return FlipStatistics(by_layer(self._decisions), by_layer(self._flipped), by_layer(self._native))

    def bind(self, module: nn.Module, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function` with this router replay installed on the routers below `module` whenever it runs, even after the
        context was left.

        For a model that calls torch's `checkpoint` itself: `checkpoint(router_replay.bind(layer, layer.forward), x,
        use_reentrant=False)`. Layers of transformers and torch's `checkpoint_wrapper` are bound without it.
        """
        below = set(module.modules())
        routers = [router for router in self._routers if router.module in below]

        def bound(*args: Any, **kwargs: Any) -> Any:
            with self._installed(routers):
                return function(*args, **kwargs)

        return bound

    @contextmanager
    def _installed(self, routers: Sequence[MoeRouter]) -> Iterator[None]:
        installation = object()
        handles = []
        for router in routers:
            _installations.setdefault(router.module, []).append(installation)
            handles.append(router.module.register_forward_hook(partial(self._reroute, router, installation)))
        try:
            yield
        finally:
            for router, handle in zip(routers, handles, strict=True):
                handle.remove()
                _installations[router.module].remove(installation)

    def _reroute(
        self,
        router: MoeRouter,
        installation: object,
        module: nn.Module,
        _args: Any,
        output: tuple[Tensor, Tensor, Tensor],
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        if _installations[module][-1] is not installation:
            return None
        logits, _, native = output
        if native.shape[0] != self._routes.shape[0]:
            raise ValueError(
                f"routes are of {self._routes.shape[0]} tokens, allowed is the {native.shape[0]} of the forward pass "
                f"(batch × sequence, padding included)."
            )
        routes = self._routes[:, router.layer].to(device=native.device, dtype=native.dtype)
        unrecorded = routes[:, :1] == NATIVE
        chosen = torch.where(unrecorded, native, routes)
        if not is_recomputing():
            self._count(router.layer, native, chosen, unrecorded)
        return logits, router.gate_weights(module, logits, chosen), chosen

    @torch.no_grad()
    def _count(self, layer: int, native: Tensor, chosen: Tensor, unrecorded: Tensor) -> None:
        routed_natively = unrecorded.sum()
        for counts, value in (
            (self._native, routed_natively),
            (self._decisions, native.shape[0] - routed_natively),
            (self._flipped, (~same_experts(native, chosen)).sum()),
        ):
            counts[layer] = counts[layer] + value if layer in counts else value


@contextmanager
def replayed(model: nn.Module, routes: Tensor) -> Iterator[RouterReplay]:
    """Router replay: forward passes inside the context use the experts of `routes`.

    Gate weights are computed from the router's own logits for the recorded experts, so gradients reach the router.

    The context must cover the forward pass; backward may come later, and layers that it recomputes (transformers'
    gradient checkpointing, torch's `checkpoint_wrapper`) use the same routes, whatever router replay is active by then.
    A checkpoint made in another way is bound with `RouterReplay.bind`. All forward passes in one context use the same
    routes, so each micro-batch needs a context of its own. Contexts nest: the innermost applies.

    Args:
        model: a transformers model of a family in `FAMILIES`; under FSDP2 too.
        routes: integers `[tokens, moe_layers, top_k]`, tokens in the order of the flattened input, padding included;
            −1 in all slots: native. Referenced, not copied, until the graph is freed; any device, moved by layer.

    Raises:
        ValueError: no adapter for the model, or shape or expert ids do not fit it. In the forward pass: the number of
            tokens differs from that of the routes.
    """
    routers = moe_routers(model)
    router_replay = RouterReplay(routers, routes)
    with bound_checkpoints(model, router_replay.bind), router_replay._installed(routers):
        yield router_replay
