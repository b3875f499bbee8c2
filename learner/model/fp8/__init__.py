"""FP8 training on CUDA: linear and expert layers compute in Transformer Engine, the checkpoint stays Hugging Face's.

    require_transformer_engine("cuda")
    names = compute_in_fp8(model, TransformerEngine("block"))     # before fully_shard

The modules below the decoder layers are swapped: attention, dense and shared MLPs (`linears`), and the experts, which
are most of an MoE's operations (`experts`). Embedding, head, norms and routers stay in bf16, as in published recipes.

The model keeps the same `Parameter` objects under the same names, so optimizer, checkpoints, published weights and FSDP
see no difference. It needs CUDA; structure, names, the order of rows, gradients and the round trip are tested on a CPU,
and no kernel of Transformer Engine has been run (docs/learner.md).
"""

from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from torch import nn

from learner.device_check import require_transformer_engine
from learner.model.fp8.engine import TILE, Engine, Fp8Recipe, TransformerEngine
from learner.model.fp8.experts import swap_experts
from learner.model.fp8.linears import swap_linears

__all__ = ["TILE", "Engine", "Fp8Recipe", "TransformerEngine", "compute_in_fp8", "require_transformer_engine"]


def compute_in_fp8(model: nn.Module, engine: Engine) -> tuple[str, ...]:
    """Swap linear layers and experts below the decoder layers, in place; returns the swapped modules' names.

    ModelError: no linear layer has suitable sizes, or the experts do not.
    """
    swapped = swap_linears(model, engine) + swap_experts(model, engine)
    decoder: Any = model
    decoder.model.forward = partial(_forward_in_context, engine, decoder.model.forward)
    return swapped


def _forward_in_context(engine: Engine, forward: Any, *args: Any, **kwargs: Any) -> Any:
    """The model's forward pass in one FP8 context around those of its layers: for delayed scaling the exit of the
    outermost context ends one step of its history."""
    context: AbstractContextManager[None] = engine.autocast()
    with context:
        return forward(*args, **kwargs)
