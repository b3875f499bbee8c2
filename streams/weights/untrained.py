"""Tensors of a checkpoint that are not the network's: no training moves them, and no publication carries them.

DeepSeek-V3's directories hold multi-token prediction heads (arXiv 2412.19437, section 2.2) as decoder layers past the
last one, `num_nextn_predict_layers` of them. transformers leaves them out, and vLLM reads them for speculative decoding
alone. Older directories hold the rotary embedding's frequencies, which both compute for themselves.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

_FREQUENCIES: Final = ".rotary_emb.inv_freq"


def head_count(config: Mapping[str, Any]) -> int:
    """Multi-token prediction heads; where config.json does not say, transformers takes DeepSeek's to have one."""
    count = config.get("num_nextn_predict_layers", 1 if config.get("model_type") == "deepseek_v3" else 0)
    return count if isinstance(count, int) else 0


def prediction_heads(names: Iterable[str], config: Mapping[str, Any]) -> frozenset[str]:
    """The tensors of multi-token prediction heads among `names`; `config` is the content of config.json."""
    layers, heads = config.get("num_hidden_layers"), head_count(config)
    if not isinstance(layers, int):
        return frozenset()
    prefixes = tuple(f"model.layers.{layers + head}." for head in range(heads))
    return frozenset(name for name in names if name.startswith(prefixes)) if prefixes else frozenset()


def untrained(names: Iterable[str], config: Mapping[str, Any]) -> frozenset[str]:
    """Those of `names` that a publication is without: prediction heads and rotary frequencies."""
    names = list(names)
    return prediction_heads(names, config) | {name for name in names if name.endswith(_FREQUENCIES)}


def read_model_config(directory: Path) -> dict[str, Any]:
    """The directory's config.json. OSError: it cannot be read. ValueError: it is no JSON object."""
    config = json.loads((directory / "config.json").read_bytes())
    if not isinstance(config, dict):
        raise ValueError(f"config.json of {directory} is no JSON object")
    return config
