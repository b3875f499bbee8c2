"""DeepSeek-V3 configurations: keys that vLLM reads and transformers assumes, and limits of vLLM's CPU kernels.

transformers' network has sigmoid scores and a routing bias whatever config.json says. vLLM 0.30.0 takes `scoring_func`
"softmax" where none is given, and without `topk_method` it has no bias: engine and learner would differ.
Its latent attention on CPU has one size (`vllm.v1.attention.backends.mla.cpu_mla`).
"""

from collections.abc import Mapping
from typing import Any, Final

from deploy.config.error_text import shown
from deploy.errors import ConfigError

_READ: Final = {"scoring_func": "sigmoid", "topk_method": "noaux_tc"}
_LATENT: Final = {"kv_lora_rank": 512, "qk_rope_head_dim": 64}


def check_deepseek(path: str, model: Mapping[str, Any], device: str) -> None:
    """`model` is config.json of the directory `path`. ConfigError: the engine would compute it differently."""
    if model.get("model_type") != "deepseek_v3":
        return
    for key, wanted in _READ.items():
        if model.get(key) != wanted:
            raise ConfigError(
                f"model.path is {shown(path)}, whose config.json has {key} {shown(model.get(key))}; "
                f"allowed: {shown(wanted)}, for vLLM routes by it and the learner knows no other"
            )
    if device != "cpu":
        return
    for key, size in _LATENT.items():
        if model.get(key) != size:
            raise ConfigError(
                f"model.path is {shown(path)}, whose config.json has {key} {shown(model.get(key))}; allowed with "
                f"producer.device cpu: {size}, for vLLM's kernel for latent attention has no other size there"
            )
