"""How each model family turns router logits into gate weights.

Every family's router (transformers 5.23) returns `(logits [T, E], gate weights [T, k], expert ids [T, k])`. A family
here is the function that computes the gate weights of *any* chosen experts from the logits alone, with the model's own
operations: router replay of a pass's own routes is bitwise the native pass, and gradients reach the router.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

RouterFamily = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""`(router, logits [T, E], expert ids [T, k]) -> gate weights [T, k]`."""


def softmax_then_gather(router: nn.Module, logits: Tensor, experts: Tensor) -> Tensor:
    """Softmax over all experts in float32, gathered, renormalised if `norm_topk_prob` (Qwen3-MoE, Qwen2-MoE, OLMoE)."""
    weights = torch.softmax(logits, dim=-1, dtype=torch.float).gather(-1, experts)
    if router.norm_topk_prob:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return weights.to(logits.dtype)


def softmax_renormalised(router: nn.Module, logits: Tensor, experts: Tensor) -> Tensor:
    """Softmax over all experts, gathered, always renormalised, left in float32 (Mixtral)."""
    weights = torch.softmax(logits.float(), dim=-1).gather(-1, experts)
    return weights / weights.sum(dim=-1, keepdim=True)


def sigmoid_scaled(router: nn.Module, logits: Tensor, experts: Tensor) -> Tensor:
    """Sigmoid of each chosen logit, renormalised if `norm_topk_prob`, times `routed_scaling_factor` (DeepSeek-V3).

    The correction bias and the group limits affect only the choice of experts, never their weights.
    """
    weights = logits.sigmoid().gather(-1, experts)
    if router.norm_topk_prob:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
    scale = float(router.routed_scaling_factor)  # type: ignore[arg-type]
    scaled: Tensor = weights * scale
    return scaled


FAMILIES: Mapping[str, RouterFamily] = {
    "Qwen3MoeTopKRouter": softmax_then_gather,
    "Qwen2MoeTopKRouter": softmax_then_gather,
    "OlmoeTopKRouter": softmax_then_gather,
    "MixtralTopKRouter": softmax_renormalised,
    "DeepseekV3TopkRouter": sigmoid_scaled,
    "DeepseekV32TopkRouter": sigmoid_scaled,
    "Glm4MoeTopkRouter": sigmoid_scaled,
}
"""Router class of transformers → its family; add a line to support another model with the same arithmetic."""


@dataclass(frozen=True)
class MoeRouter:
    """One MoE layer's router in a model: its index among the MoE layers, its module and its family's function."""

    layer: int
    module: nn.Module
    gate_weights: RouterFamily

    @property
    def num_experts(self) -> int:
        return int(self.module.num_experts)  # type: ignore[arg-type]

    @property
    def top_k(self) -> int:
        return int(self.module.top_k)  # type: ignore[arg-type]


def moe_routers(model: nn.Module) -> list[MoeRouter]:
    """The routers of `model`, from the first MoE layer to the last.

    Raises:
        ValueError: the model has no MoE layer, or one whose router has no adapter here.
    """
    found: list[MoeRouter] = []
    for module in model.modules():
        family = _family(module)
        if family is not None:
            found.append(MoeRouter(len(found), module, family))
        elif any(name == "experts" for name, _ in module.named_children()) and not any(map(_family, module.children())):
            raise ValueError(
                f"Router replay has no adapter for {type(module).__name__} of {type(model).__name__}, "
                f"allowed are models with {', '.join(FAMILIES)}."
            )
    if not found:
        raise ValueError(
            f"Router replay has no adapter for {type(model).__name__}, allowed are models with {', '.join(FAMILIES)}."
        )
    return found


def _family(module: nn.Module) -> RouterFamily | None:
    """The family by class name along the MRO, since `fully_shard` makes the module an instance of a subclass."""
    for base in type(module).__mro__:
        if base.__name__ in FAMILIES and base.__module__.startswith("transformers."):
            return FAMILIES[base.__name__]
    return None
