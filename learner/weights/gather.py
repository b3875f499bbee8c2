"""From shards to the files that engines load: gathered, in bf16, under the names of the model directory."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from learner.errors import ModelError
from learner.policy import Policy


def gather(policy: Policy, rank: int) -> dict[str, Tensor]:
    """Whole bf16 tensors on the CPU by their names in the module tree; empty on all ranks but the first.

    Collective: every rank calls it, at the same point. One tensor at a time is whole on the other ranks. Rounding comes
    before gathering: half the bytes, and the same result.
    """
    whole: dict[str, Tensor] = {}
    for name, shard in policy.named_shards():
        rounded = shard.detach().to(torch.bfloat16)
        assert isinstance(rounded, DTensor)
        full = rounded.full_tensor()
        if rank == 0:
            whole[name] = full.cpu()
    if rank == 0:
        # Buffers that belong to a checkpoint (DeepSeek's routing bias) are not sharded, nor trained. Copied: what is
        # published is kept for the next delta, and must not change with the live tensor.
        state = policy.model.state_dict()
        whole |= {name: value.cpu().clone() for name, value in state.items() if not isinstance(value, DTensor)}
    return whole


def stored_form(model: Any, whole: Mapping[str, Tensor], stored: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The tensors under the names and shapes of `stored` (the model directory's): transformers fuses a layer's experts
    into one tensor, and this takes them apart again.

    Tensors that the directory has and the network has not (DeepSeek's prediction heads) are left out. ModelError: a
    name or shape that the directory has not.
    """
    from transformers.core_model_loading import revert_weight_conversion

    tensors: dict[str, Tensor] = revert_weight_conversion(model, dict(whole))
    if "lm_head.weight" not in stored and model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    for name, tensor in tensors.items():
        if stored.get(name) != tuple(tensor.shape):
            raise ModelError(
                f"trained tensor {name} has shape {list(tensor.shape)}, and the model directory has "
                f"{list(stored[name]) if name in stored else 'no such tensor'}"
            )
    return tensors
