"""A tiny model of each family that the learner trains, as transformers saves it, and sequences for it."""

from pathlib import Path
from typing import Any, Final

import torch
import transformers

from learner.model.packed_row import Rollout
from learner.model.policy import ModelShape

COMMON: Final[dict[str, Any]] = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
    "num_experts_per_tok": 2,
}
FAMILIES: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "qwen3_moe": ("Qwen3Moe", {"num_experts": 4, "moe_intermediate_size": 16, "head_dim": 8}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "router_jitter_noise": 0.1, "attention_dropout": 0.1}),
    "olmoe": ("Olmoe", {"num_experts": 4}),
    "deepseek_v3": (
        "DeepseekV3",
        {
            "num_hidden_layers": 3,
            "num_key_value_heads": 4,
            "n_routed_experts": 8,
            "n_group": 4,
            "topk_group": 2,
            "n_shared_experts": 1,
            "routed_scaling_factor": 2.5,
            "moe_intermediate_size": 16,
            "first_k_dense_replace": 1,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
        },
    ),
}
"""`model_type` → the name in transformers' classes, and what its configuration has besides `COMMON`."""

SHAPES: Final = {
    family: ModelShape(vocabulary=48, max_tokens=64, moe_layers=2, top_k=2, experts=8 if "deepseek" in family else 4)
    for family in FAMILIES
}


def build_family(family: str, directory: Path) -> None:
    """Random weights, and a correction bias large enough to change what DeepSeek's router chooses."""
    name, changes = FAMILIES[family]
    with torch.random.fork_rng():
        torch.manual_seed(5)
        config = getattr(transformers, f"{name}Config")(**{**COMMON, **changes})
        model: Any = getattr(transformers, f"{name}ForCausalLM")(config)
        for buffer_name, buffer in model.named_buffers():
            if "correction_bias" in buffer_name:
                buffer.normal_(std=0.2)
        model.save_pretrained(directory)


def rollouts(family: str) -> list[Rollout]:
    """Seven sequences; one has no routes at all, and the last token of the others none."""
    shape = SHAPES[family]
    generator = torch.Generator().manual_seed(11)
    drawn = []
    for index, (prompt, response) in enumerate([(3, 5), (1, 1), (6, 2), (2, 9), (4, 4), (1, 7), (2, 3)]):
        length = prompt + response
        routes = torch.rand(length, shape.moe_layers, shape.experts, generator=generator).argsort(-1)
        routes = routes[..., : shape.top_k].to(torch.int16)
        routes[-1] = -1
        drawn.append(
            Rollout(
                rollout_id=f"r{index}",
                tokens=torch.randint(3, shape.vocabulary, (length,), generator=generator),
                prompt_tokens=prompt,
                logp_rollout=torch.full((response,), -3.9),
                routes=None if index == 2 else routes,
                advantage=float(torch.randn((), generator=generator)),
                reward=float(index % 2),
            )
        )
    return drawn
