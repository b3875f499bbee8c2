"""Model directories of the families beside Qwen3-MoE, as the service gets them: random weights, our tokenizer.

Sizes are such that vLLM runs them on a CPU: its kernel for latent attention knows one size alone, a latent of 512 and
64 rotary dimensions. DeepSeek's first layer is dense, its routing bias changes what is chosen, and its directory
holds a multi-token prediction head, which transformers leaves out and vLLM reads for speculative decoding alone.
"""

import json
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from learner.router_replay import moe_routers
from scripts.build_tiny_model import EOS_ID, PAD_ID, VOCABULARY_SIZE, build_tokenizer

LAYERS: Final = 3
COMMON: Final[dict[str, Any]] = {
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.06,
    "tie_word_embeddings": False,
    "pad_token_id": PAD_ID,
    "bos_token_id": None,
    "eos_token_id": EOS_ID,
}
FAMILIES: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "mixtral": ("Mixtral", {"num_local_experts": 8, "head_dim": 32}),
    "olmoe": ("Olmoe", {"num_experts": 8}),
    "deepseek_v3": (
        "DeepseekV3",
        {
            "intermediate_size": 256,
            "num_key_value_heads": 4,
            "n_routed_experts": 8,
            "n_group": 4,
            "topk_group": 2,
            "n_shared_experts": 1,
            "routed_scaling_factor": 1.5,
            "moe_intermediate_size": 64,
            "first_k_dense_replace": 1,
            "q_lora_rank": 32,
            "kv_lora_rank": 512,
            "qk_rope_head_dim": 64,
            "qk_nope_head_dim": 32,
            "v_head_dim": 32,
            # What transformers takes for granted, and vLLM reads.
            "scoring_func": "sigmoid",
            "topk_method": "noaux_tc",
        },
    ),
}
"""`model_type` → the name in transformers' classes, and what its configuration has besides `COMMON`."""

HEAD: Final = f"model.layers.{LAYERS}."
"""How the names of the prediction head's tensors begin."""


def build(family: str, directory: Path) -> None:
    """A directory as published ones are: bfloat16, with the routing bias in float32."""
    name, changes = FAMILIES[family]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = getattr(transformers, f"{name}Config")(**{**COMMON, **changes})
        model: Any = getattr(transformers, f"{name}ForCausalLM")(config)
        for router in moe_routers(model):
            gate: Any = router.module
            biased = hasattr(gate, "e_score_correction_bias")
            # Sharper than at initialisation, where all experts tie and every rounding decides; less so where a sigmoid
            # would take them to its end and make them tie again.
            nn.init.normal_(gate.weight, std=0.1 if biased else 0.3)
            if biased:
                nn.init.normal_(gate.e_score_correction_bias, std=0.1)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    model.save_pretrained(directory)
    build_tokenizer().save_pretrained(directory)
    if family == "deepseek_v3":
        _add_head(directory)


def _add_head(directory: Path) -> None:
    """The names of DeepSeek-V3's own head: a whole decoder layer, what joins it to the network, and its own ends."""
    path = directory / "model.safetensors"
    tensors = load_file(path)
    last = f"model.layers.{LAYERS - 1}."
    head = {name.replace(last, HEAD): tensor * 0.5 for name, tensor in tensors.items() if name.startswith(last)}
    hidden = COMMON["hidden_size"]
    head |= {
        f"{HEAD}eh_proj.weight": torch.full((hidden, 2 * hidden), 0.01, dtype=torch.bfloat16),
        f"{HEAD}enorm.weight": torch.ones(hidden, dtype=torch.bfloat16),
        f"{HEAD}hnorm.weight": torch.ones(hidden, dtype=torch.bfloat16),
        f"{HEAD}shared_head.norm.weight": torch.ones(hidden, dtype=torch.bfloat16),
        f"{HEAD}shared_head.head.weight": tensors["lm_head.weight"].clone(),
        f"{HEAD}embed_tokens.weight": tensors["model.embed_tokens.weight"].clone(),
    }
    save_file(tensors | head, path, {"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 1}))
