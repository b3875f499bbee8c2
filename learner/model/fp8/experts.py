"""Experts in FP8: a layer's fused expert matrices through a grouped layer of the engine.

transformers keeps a layer's experts as two parameters, `gate_up_proj` `[E, 2I, H]` and `down_proj` `[E, H, I]`; a
grouped layer of E products has `weight0` to `weight{E-1}`. The two parameters stay under their names, and each forward
pass lends their slices to the grouped layer in place of its own weights, so that the slices' gradients accumulate in
the whole parameter's.

Only the experts' computation is replaced, not the routing: it is called with the tokens, the experts' ids and their
gate weights, which router replay has set by then. That call, `(hidden [T, H], ids [T, k], weights [T, k])` to
`[T, H]`, is also where expert parallelism would go: see `learner.model.policy.shard`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from learner.errors import ModelError
from learner.model.fp8.engine import TILE, Engine


@dataclass(frozen=True)
class Grouping:
    """Rows of a matrix grouped by expert, one row for each of a token's k experts.

    Attributes:
        rows: int64 `[T·k]`, the row of each choice, in the order of the ids; all distinct.
        splits: the number of rows of each expert, in the order of experts, padding included.
    """

    rows: Tensor
    splits: list[int]


def grouped(ids: Tensor, experts: int, multiple: int) -> Grouping:
    """Group the choices `ids`, int64 `[T, k]`, by expert, in the order of tokens within each expert.

    Each expert's rows are padded to a multiple of `multiple`; an expert that no token chose has no rows.
    """
    flat = ids.reshape(-1)
    loads = torch.bincount(flat, minlength=experts)
    sizes = (loads + multiple - 1) // multiple * multiple
    filled_before = (sizes.cumsum(0) - sizes) - (loads.cumsum(0) - loads)
    order = torch.argsort(flat, stable=True)
    row = torch.arange(flat.numel(), device=flat.device) + filled_before[flat[order]]
    # The engine takes the counts on the host, so this synchronises with the device once per layer.
    return Grouping(torch.empty_like(row).scatter_(0, order, row), sizes.tolist())


def swap_experts(model: nn.Module, engine: Engine) -> tuple[str, ...]:
    """Let `engine` compute the fused experts below the decoder layers; returns their names, in the model's order.

    ModelError: experts with biases, transposed or without a gate, or sizes that are not multiples of 32. They are not
    left in bf16, since they are most of the model's operations.
    """
    causal: Any = model
    swapped: list[str] = []
    for name, module in causal.model.layers.named_modules(prefix="model.layers"):
        if isinstance(getattr(module, "gate_up_proj", None), nn.Parameter):
            _check(name, module)
            up, down = _layers(module, engine)
            module.forward = partial(_forward, module, engine, up, down)
            swapped.append(name)
    return tuple(swapped)


def _check(name: str, experts: Any) -> None:
    if experts.is_transposed or experts.has_bias or not experts.has_gate or experts.has_post_expert_norm:
        raise ModelError(f"precision 'fp8' does not compute experts as those of {name} are laid out; use bf16 or f32")
    for matrix in ("gate_up_proj", "down_proj"):
        shape = list(getattr(experts, matrix).shape)
        if any(size % TILE for size in shape[1:]):
            raise ModelError(
                f"precision 'fp8' needs experts whose sizes are multiples of {TILE}, and {name}.{matrix} is {shape}; "
                f"use bf16 or f32"
            )


def _layers(experts: Any, engine: Engine) -> list[nn.Module]:
    """Grouped layers for `gate_up_proj` and `down_proj`; not submodules, since their weights are not the model's."""
    made = []
    for matrix in (experts.gate_up_proj, experts.down_proj):
        products, out_features, in_features = matrix.shape
        made.append(engine.grouped_linear(products, in_features, out_features, matrix.dtype))
    return made


def _forward(
    experts: Any, engine: Engine, up: nn.Module, down: nn.Module, hidden: Tensor, ids: Tensor, weights: Tensor
) -> Tensor:
    """Σ_k w_k·down_k(act(gate_k(h))·up_k(h)) over each token's experts k, `[T, H]`."""
    tokens, chosen = ids.shape
    grouping = grouped(ids, experts.num_experts, TILE)
    repeated = hidden[:, None].expand(tokens, chosen, -1).reshape(tokens * chosen, -1)
    rows = hidden.new_zeros(sum(grouping.splits), hidden.shape[-1]).index_copy(0, grouping.rows, repeated)
    with engine.autocast():
        inner = experts._apply_gate(_lent(up, experts.gate_up_proj, rows, grouping.splits))
        outer = _lent(down, experts.down_proj, inner, grouping.splits)
    each = outer.index_select(0, grouping.rows).view(tokens, chosen, -1)
    return (each * weights[..., None]).sum(dim=1).to(hidden.dtype)


def _lent(layer: nn.Module, matrices: Tensor, rows: Tensor, splits: Sequence[int]) -> Tensor:
    """`layer` applied to `rows` `[M, in]` with `matrices` `[E, out, in]` as its weights: `[M, out]`."""
    slices = {f"weight{index}": matrix for index, matrix in enumerate(matrices.unbind(0))}
    computed: Tensor = functional_call(layer, slices, (rows, splits))
    return computed
