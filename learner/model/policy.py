"""The policy: a stock Hugging Face MoE model, sharded with FSDP2, that maps a packed row to log-probs and entropies."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from learner.device_check import FLASH, require_transformer_engine
from learner.errors import ModelError
from learner.model.attention import PACKED, flash_boundaries, register, sequence_boundaries
from learner.model.fp8 import TransformerEngine, compute_in_fp8
from learner.model.logprobs import token_logprobs_and_entropy
from learner.model.packed_row import PackedRow
from learner.router_replay import moe_routers
from learner.settings import SUPPORTED, LearnerSettings, Precision


@dataclass(frozen=True)
class ModelShape:
    """The model's sizes that a rollout must fit: lengths, the shape of its routes, token ids and expert ids."""

    vocabulary: int
    max_tokens: int
    moe_layers: int
    top_k: int
    experts: int


class Policy(nn.Module):
    """Root module of the sharded model. It applies the head itself: here FSDP holds the head's weight gathered.

    `forward(row)` → (logp `[R]`, entropy `[R]`), float32 and differentiable, of the row's sampled tokens.
    """

    def __init__(self, model: nn.Module, chunk_tokens: int) -> None:
        super().__init__()
        self.model = model
        self.chunk_tokens = chunk_tokens

    def forward(self, row: PackedRow) -> tuple[Tensor, Tensor]:
        """See the class. "packed" and flash attention are passed the sequence boundaries; for any other implementation
        transformers makes a mask from `position_ids`."""
        causal: Any = self.model
        boundaries: dict[str, Any] = {}
        if causal.config._attn_implementation == PACKED:
            boundaries["packing"] = sequence_boundaries(row.lengths, row.tokens.device)
        elif causal.config._attn_implementation == FLASH:
            boundaries = flash_boundaries(row.lengths, row.tokens.device)
        output = causal.model(
            input_ids=row.tokens.unsqueeze(0), position_ids=row.position_ids.unsqueeze(0), use_cache=False, **boundaries
        )
        hidden = output.last_hidden_state[0, row.predictors]
        if row.temperature is not None:
            # softmax(W·h / temperature): the distribution that was sampled from, whose log-probs were recorded.
            hidden = (hidden / row.temperature.unsqueeze(1)).to(hidden.dtype)
        return token_logprobs_and_entropy(hidden, causal.lm_head.weight, row.targets, self.chunk_tokens)

    def named_shards(self) -> Iterator[tuple[str, DTensor]]:
        """Parameters, float32 DTensors, with their names in the Hugging Face model."""
        for name, parameter in self.model.named_parameters():
            assert isinstance(parameter, DTensor)
            yield name, parameter


def read_config(directory: Path) -> Any:
    """The model's configuration, read before any weight. ModelError: not a supported family, or unreadable."""
    from transformers import AutoConfig

    if not (directory / "config.json").is_file():
        raise ModelError(f"model directory {directory} has no config.json")
    try:
        config = AutoConfig.from_pretrained(directory)
    except (OSError, ValueError) as error:
        raise ModelError(f"model directory {directory} has a config.json that does not load: {error}") from error
    if config.model_type not in SUPPORTED:
        named = ", ".join(config.architectures or ()) or "no architecture"
        raise ModelError(
            f"model directory {directory} is {named} of model_type {config.model_type!r}; supported are the families "
            f"{', '.join(SUPPORTED)}"
        )
    # Old and new log-probs must come from the same function: no dropout, no router noise.
    for noise in ("attention_dropout", "router_jitter_noise"):
        if getattr(config, noise, 0.0):
            setattr(config, noise, 0.0)
    return config


def load_model(directory: Path, settings: LearnerSettings) -> nn.Module:
    """The model of `directory` in float32 on the CPU. ModelError: not a supported family, or unreadable."""
    from transformers import AutoModelForCausalLM

    register()
    try:
        model: nn.Module = AutoModelForCausalLM.from_pretrained(
            directory,
            config=read_config(directory),
            dtype=torch.float32,
            attn_implementation=settings.attention,
            experts_implementation=settings.experts,
        )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise ModelError(f"model directory {directory} does not load: {error}") from error
    return model


def model_shape(model: Any, limit: int | None) -> ModelShape:
    """Sizes of a loaded model; `limit` bounds the tokens of a sequence below the model's own limit."""
    config = model.config
    routers = moe_routers(model)
    own = int(config.max_position_embeddings)
    return ModelShape(
        vocabulary=int(config.vocab_size),
        max_tokens=own if limit is None else min(own, limit),
        moe_layers=len(routers),
        top_k=routers[0].top_k,
        experts=routers[0].num_experts,
    )


def build_policy(directory: Path, settings: LearnerSettings, mesh: DeviceMesh) -> Policy:
    """Load and shard the model: one FSDP group per decoder layer, and one for embedding, final norm and head.

    ModelError: see `load_model`, or a precision that this machine does not support.
    """
    mixed = mixed_precision(settings.precision.compute, mesh.device_type)
    model = load_model(directory, settings)
    if settings.precision.compute == "fp8":
        compute_in_fp8(model, TransformerEngine(settings.precision.fp8_recipe))
    if settings.activation_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    return shard(model, mesh, mixed, settings)


def build_reference(directory: Path, settings: LearnerSettings, mesh: DeviceMesh) -> Policy:
    """The frozen reference of the KL term: the unmodified model of `directory`, sharded like the policy.

    It has neither gradients nor moments, and its parameters are held in the precision that it computes in.
    ModelError: see `build_policy`.
    """
    mixed = mixed_precision(settings.precision.compute, mesh.device_type)
    model = load_model(directory, settings)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        parameter.data = parameter.data.to(mixed.param_dtype or parameter.dtype)
    return shard(model, mesh, mixed, settings).eval()


def shard(model: nn.Module, mesh: DeviceMesh, mixed: MixedPrecisionPolicy, settings: LearnerSettings) -> Policy:
    """Shard `model` over `mesh` in place; returns it as a `Policy`.

    Expert parallelism is not implemented; it would go here: the mesh gets an "expert" dimension
    (`learner.ranks.group.join_group`), every `experts` module is sharded along the experts over that dimension before
    its layer is sharded over the others, and its `forward` sends the tokens to the ranks of their experts and the
    results back, around what `learner.model.fp8.experts` puts in the same place. Router replay still names experts by
    their global ids; checkpoints and publication take any DTensor; the gradient norm is then a sum over two meshes.
    """
    policy = Policy(model, settings.chunk_tokens)
    if mesh.device_type != "cpu" and not settings.optimizer.cpu_offload:
        policy.to(torch.device(mesh.device_type, torch.cuda.current_device()))
    # Memory can only be pinned for CUDA; with a CPU mesh everything is on the CPU already and this changes nothing.
    offload = (
        CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda") if settings.optimizer.cpu_offload else OffloadPolicy()
    )
    causal: Any = model
    for layer in causal.model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=mixed, offload_policy=offload)
    fully_shard(policy, mesh=mesh, mp_policy=mixed, offload_policy=offload)
    # transformers recomputes activations in train mode only; without dropout or noise both modes compute the same.
    return policy.train(settings.activation_checkpointing)


def mixed_precision(precision: Precision, device: str) -> MixedPrecisionPolicy:
    """Float32 master weights and reductions; computation in `precision` (fp8: bf16 outside the FP8 layers).

    ModelError: fp8 without CUDA or without transformer-engine.
    """
    if precision == "fp8":
        require_transformer_engine(device)
    if precision in ("bf16", "fp8"):
        return MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    return MixedPrecisionPolicy()


def stored_tensors(directory: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in the directory's safetensors. ModelError: there are none."""
    files = sorted(directory.glob("*.safetensors"))
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        files = [directory / name for name in sorted(set(json.loads(index.read_bytes())["weight_map"].values()))]
    if not files:
        raise ModelError(f"model directory {directory} has no safetensors files")
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        with safe_open(path, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a dict
                shapes[name] = tuple(opened.get_slice(name).get_shape())
    return shapes
