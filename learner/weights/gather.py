"""From shards to the files that engines load: gathered, in bf16, under the names of the model directory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from learner.errors import ModelError
from learner.model.policy import Policy, read_config
from streams.weights.untrained import untrained


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
        whole |= stored_buffers(policy.model)
    return whole


def stored_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the buffers that belong to a checkpoint (DeepSeek's routing bias), neither sharded nor trained.

    Copied: what is published is kept for the next delta, and must not change with the live tensor. What a module keeps
    besides its tensors (Transformer Engine's layers: scales) is in a state dict too, and is nothing of the model.
    """
    buffers = dict(model.named_buffers())
    return {name: buffers[name].cpu().clone() for name in model.state_dict() if name in buffers}


def stored_form(model: Any, whole: Mapping[str, Tensor], stored: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The tensors under the names and shapes of `stored` (the model directory's): transformers fuses a layer's experts
    into one tensor, and this takes them apart again.

    Prediction heads and rotary frequencies are left out (`streams.weights.untrained`). ModelError: a name or shape that
    the directory has not, or another tensor that the network has not, without which no engine takes the publication.
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
    if strange := sorted(stored.keys() - tensors.keys() - untrained(stored, model.config.to_dict())):
        raise ModelError(
            f"the model directory holds {len(strange)} tensors that the network has not, first {strange[0]}; allowed "
            f"besides the network's own are multi-token prediction heads"
        )
    return tensors


def refuse_unpublishable(directory: Path, stored: Mapping[str, tuple[int, ...]]) -> None:
    """ModelError: trained weights would not fit the directory, as `stored_form` says it; without reading a weight.

    transformers only warns of a tensor that the directory lacks, and makes one up.
    """
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(read_config(directory))
    except (ValueError, RuntimeError, ImportError) as error:
        raise ModelError(f"model directory {directory} has a config.json of which no model is made: {error}") from error
    known = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    stored_form(model, {name: known[name].detach() for name in model.state_dict() if name in known}, stored)
