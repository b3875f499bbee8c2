"""Cost of a sequence for the learner, by the model's configuration: floating-point operations of one forward pass."""

from collections.abc import Mapping
from typing import Any


def cost_of_model(config: Mapping[str, Any]) -> tuple[float, float]:
    """(a, b) of a·n + b·n² for a sequence of n tokens, in operations; training is a constant factor above it.

    `config` is a Hugging Face `config.json` of a decoder model (Qwen3-MoE, Mixtral, OLMoE, DeepSeek-V3 family, or
    dense). a counts two operations per *active* matrix weight (projections, router, the experts a token visits, output
    layer); b counts causal attention: scores and weighted values, half of n² each. Raises ValueError naming a missing
    or impossible entry.
    """
    layers = _positive(config, "num_hidden_layers")
    hidden = _positive(config, "hidden_size")
    heads = _positive(config, "num_attention_heads")
    projections, score_width, value_width = _attention(config, hidden, heads)
    moe_layers = sum(_is_moe(config, layer) for layer in range(layers))
    weights = layers * projections + hidden * _positive(config, "vocab_size")
    if moe_layers:
        weights += moe_layers * _experts(config, hidden)
    if layers > moe_layers:
        weights += (layers - moe_layers) * 3 * hidden * _positive(config, "intermediate_size")
    return 2.0 * weights, 1.0 * layers * heads * (score_width + value_width)


def _attention(config: Mapping[str, Any], hidden: int, heads: int) -> tuple[int, int, int]:
    """Projection weights of one layer, and widths per head of query-key products and of values."""
    if not config.get("kv_lora_rank"):
        width = config.get("head_dim") or hidden // heads
        key_value_heads = config.get("num_key_value_heads") or heads
        return 2 * hidden * width * (heads + key_value_heads), width, width
    rope, nope = _positive(config, "qk_rope_head_dim"), _positive(config, "qk_nope_head_dim")
    values, rank = _positive(config, "v_head_dim"), _positive(config, "kv_lora_rank")
    query_rank = config.get("q_lora_rank")
    query = query_rank * (hidden + heads * (rope + nope)) if query_rank else hidden * heads * (rope + nope)
    key_value = hidden * (rank + rope) + rank * heads * (nope + values)
    return query + key_value + heads * values * hidden, rope + nope, values


def _is_moe(config: Mapping[str, Any], layer: int) -> bool:
    if not _expert_count(config) or layer in (config.get("mlp_only_layers") or ()):
        return False
    if layer < (config.get("first_k_dense_replace") or 0):
        return False
    return (layer + 1) % (config.get("decoder_sparse_step") or 1) == 0


def _expert_count(config: Mapping[str, Any]) -> int:
    return next((n for key in ("num_experts", "num_local_experts", "n_routed_experts") if (n := config.get(key))), 0)


def _experts(config: Mapping[str, Any], hidden: int) -> int:
    width = config.get("moe_intermediate_size") or _positive(config, "intermediate_size")
    visited = _positive(config, "num_experts_per_tok") + (config.get("n_shared_experts") or 0)
    return int(hidden * _expert_count(config) + 3 * hidden * width * visited)


def _positive(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"model configuration has {key} = {value!r} and not a whole number of at least 1")
    return value
