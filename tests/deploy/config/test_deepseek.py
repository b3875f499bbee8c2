"""DeepSeek-V3 directories that vLLM would run as another network, or not at all on a CPU."""

from typing import Any

import pytest

from deploy.config.deepseek import check_deepseek
from deploy.errors import ConfigError

PUBLISHED: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
}
"""As in the directory that DeepSeek published."""


def test_the_published_directory_and_other_families_are_taken() -> None:
    check_deepseek("m", PUBLISHED, "cpu")
    check_deepseek("m", PUBLISHED, "cuda")
    check_deepseek("m", PUBLISHED | {"kv_lora_rank": 16}, "cuda")
    check_deepseek("m", {"model_type": "olmoe"}, "cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scoring_func": None}, 'has scoring_func null; allowed: "sigmoid", for vLLM routes by it'),
        ({"topk_method": "greedy"}, 'has topk_method "greedy"; allowed: "noaux_tc"'),
        ({"kv_lora_rank": 16}, "has kv_lora_rank 16; allowed with producer.device cpu: 512"),
        ({"qk_rope_head_dim": 8}, "has qk_rope_head_dim 8; allowed with producer.device cpu: 64"),
    ],
)
def test_what_the_engine_cannot_do_is_one_sentence(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_deepseek("m", PUBLISHED | change, "cpu")
