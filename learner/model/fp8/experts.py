"""Experts in FP8: a layer's fused expert matrices through a grouped layer of the engine.

transformers keeps a layer's experts as two parameters, `gate_up_proj` `[E, 2I, H]` and `down_proj` `[E, H, I]`; a
grouped layer of E products has `weight0` to `weight{E-1}`. The two parameters stay, under their names, and each forward
pass lends their slices to the grouped layer in the place of its own weights, so that the slices' gradients join in that
of the whole.

What an expert layer computes is replaced, not who chooses: it is called with the tokens, the experts' ids and their
weights, which router replay has put in place by then. That call, `(hidden [T, H], ids [T, k], weights [T, k])` to
`[T, H]`, is where expert parallelism is to go in as well: see `learner.model.policy.shard`.
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
    """Where each token's row lies for each of its experts.

    Attributes:
        rows: int64 `[T·k]`, the row of each choice, in the order of the ids; all distinct.
        splits: the rows of each expert, one expert after the other.
    """

    rows: Tensor
    splits: list[int]


def grouped(ids: Tensor, experts: int, multiple: int) -> Grouping:
    """Group the choices `ids` `[T, k]` by expert, in the order of the tokens within each.

    An expert's rows are filled up to a multiple of `multiple` by rows that no choice lies in; an expert that nobody
    chose has none.
    """
    flat = ids.reshape(-1)
    loads = torch.bincount(flat, minlength=experts)
    sizes = (loads + multiple - 1) // multiple * multiple
    filled_before = (sizes.cumsum(0) - sizes) - (loads.cumsum(0) - loads)
    order = torch.argsort(flat, stable=True)
    row = torch.arange(flat.numel(), device=flat.device) + filled_before[flat[order]]
    # The engine takes the counts from the host, so this waits for the device, once a layer.
    return Grouping(torch.empty_like(row).scatter_(0, order, row), sizes.tolist())


def swap_experts(model: nn.Module, engine: Engine) -> tuple[str, ...]:
    """Let the fused experts below the decoder layers compute in `engine`; their names in the model, in its order.

    ModelError: experts that this does not compute (with biases, transposed, without a gate), or sizes that are not
    multiples of 32: left in bf16 they would be most of the model's operations.
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
                f"precision 'fp8' takes experts whose sizes are multiples of {TILE}, and {name}.{matrix} is {shape}; "
                f"use bf16 or f32"
            )


def _layers(experts: Any, engine: Engine) -> list[nn.Module]:
    """For `gate_up_proj` and `down_proj`. They are no children of the module: their weights are not the model's."""
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
    """`layer` on `rows` with the matrices `[E, out, in]` as its weights."""
    slices = {f"weight{index}": matrix for index, matrix in enumerate(matrices.unbind(0))}
    computed: Tensor = functional_call(layer, slices, (rows, splits))
    return computed
