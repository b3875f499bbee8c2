"""Tiny stock transformers models of each family, and their gradients."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from learner.router_replay import moe_routers

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # third-party, at import
    import transformers

EXPERTS, TOP_K, VOCAB = 8, 2, 32
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts_per_tok": TOP_K,
    "use_cache": False,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "bos_token_id": 2,
}
SMALL = {"moe_intermediate_size": 16, "head_dim": 16}
DEEPSEEK = {
    "moe_intermediate_size": 16,
    "n_routed_experts": EXPERTS,
    "n_group": 4,
    "topk_group": 2,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 2.5,
}
MLA = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
FAMILIES: dict[str, dict[str, Any]] = {
    "Qwen3Moe": {**SMALL, "num_experts": EXPERTS, "norm_topk_prob": True},
    "Qwen2Moe": {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "num_experts": EXPERTS},
    "Mixtral": {"num_local_experts": EXPERTS},
    "Olmoe": {"num_experts": EXPERTS, "norm_topk_prob": False},
    "DeepseekV3": {**DEEPSEEK, **MLA},
    "Glm4Moe": {**SMALL, **DEEPSEEK},
}


def build(family: str, experts: str = "eager", seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    config = getattr(transformers, f"{family}Config")(**{**SHAPE, **FAMILIES[family], **changes})
    config._experts_implementation = experts
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    for router in moe_routers(model):  # the stock initialisation is so small that all experts tie
        gate: Any = router.module
        nn.init.normal_(gate.weight)
        bias = getattr(gate, "e_score_correction_bias", None)
        if bias is not None:
            nn.init.normal_(bias, std=0.2)
    return model


def tokens(batch: int = 2, length: int = 7, seed: int = 1) -> Tensor:
    return torch.randint(3, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def random_routes(count: int, layers: int, seed: int = 2) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(count, layers, EXPERTS, generator=g).argsort(-1)[..., :TOP_K]


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    torch.autograd.backward(loss)
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def scalar(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.float(), -1)[..., 5].mean()
