"""Which tensors of a checkpoint no publication carries."""

import json
from pathlib import Path

import pytest

from streams.weights.untrained import prediction_heads, read_model_config, untrained

NAMES = [
    "model.embed_tokens.weight",
    "model.layers.2.mlp.gate.weight",
    "model.layers.3.eh_proj.weight",
    "model.layers.30.mlp.gate.weight",
    "model.layers.4.shared_head.norm.weight",
    "model.layers.1.self_attn.rotary_emb.inv_freq",
    "lm_head.weight",
]


@pytest.mark.parametrize(
    ("config", "heads"),
    [
        ({"num_hidden_layers": 3, "num_nextn_predict_layers": 2}, {NAMES[2], NAMES[4]}),
        ({"num_hidden_layers": 3, "num_nextn_predict_layers": 1}, {NAMES[2]}),
        ({"num_hidden_layers": 3, "num_nextn_predict_layers": None}, set()),
        ({"num_hidden_layers": 3}, set()),
        ({"num_nextn_predict_layers": 1}, set()),
        ({"num_hidden_layers": 3, "model_type": "deepseek_v3"}, {NAMES[2]}),
        ({"num_hidden_layers": 3, "model_type": "deepseek_v3", "num_nextn_predict_layers": 0}, set()),
    ],
)
def test_heads_are_the_layers_past_the_last_as_many_as_the_configuration_says(
    config: dict[str, int | str | None], heads: set[str]
) -> None:
    assert prediction_heads(NAMES, config) == heads
    assert untrained(iter(NAMES), config) == heads | {NAMES[5]}


def test_a_configuration_is_a_json_object(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"config\.json"):
        read_model_config(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match="is no JSON object"):
        read_model_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 3}))
    assert read_model_config(tmp_path) == {"num_hidden_layers": 3}
