"""The cost of a sequence from a model's configuration."""

from typing import Any

import pytest

from consumers.batches.cost import cost_of_model

TINY_QWEN3_MOE: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 128,
    "intermediate_size": 256,
    "vocab_size": 64,
}


def test_counts_active_weights_and_attention() -> None:
    attention = 128 * 32 * (4 + 2 + 2 + 4)
    experts = 128 * 8 + 2 * 3 * 128 * 128
    assert cost_of_model(TINY_QWEN3_MOE) == (2.0 * (3 * (attention + experts) + 128 * 64), 3 * 4 * 64.0)


def test_dense_layers_of_a_sparse_model() -> None:
    sparse = cost_of_model(TINY_QWEN3_MOE)[0]
    mixed = cost_of_model(TINY_QWEN3_MOE | {"mlp_only_layers": [0]})[0]
    assert mixed - sparse == 2.0 * (3 * 128 * 256 - (128 * 8 + 2 * 3 * 128 * 128))
    assert cost_of_model(TINY_QWEN3_MOE | {"decoder_sparse_step": 2})[0] == pytest.approx(
        cost_of_model(TINY_QWEN3_MOE | {"mlp_only_layers": [0, 2]})[0]
    )


def test_deepseek_v3_and_mixtral_names() -> None:
    deepseek = {
        "hidden_size": 7168,
        "num_hidden_layers": 61,
        "num_attention_heads": 128,
        "q_lora_rank": 1536,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "first_k_dense_replace": 3,
        "moe_intermediate_size": 2048,
        "intermediate_size": 18432,
        "vocab_size": 129280,
    }
    # 37 billion active parameters, of which the input embedding (0.9) multiplies nothing.
    assert cost_of_model(deepseek)[0] / 2 == pytest.approx(36.6e9, rel=0.02)
    mixtral = {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "intermediate_size": 14336,
        "vocab_size": 32000,
    }
    assert cost_of_model(mixtral)[0] / 2 == pytest.approx(12.7e9, rel=0.02)


@pytest.mark.parametrize(("key", "value"), [("hidden_size", None), ("num_hidden_layers", 0), ("vocab_size", "64")])
def test_bad_configuration_is_named(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{key} = {value!r}"):
        cost_of_model(TINY_QWEN3_MOE | {key: value})
