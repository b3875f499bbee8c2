"""The precision of cached keys and values: FP8 where vLLM can do it, else the model's own.

On a CPU vLLM 0.30 has an FP8 cache for x86 with AVX-512 or AMX alone, and for heads of a multiple of 32
(`vllm.v1.attention.backends.cpu_attn._get_attn_isa`); its latent attention there has none
(`vllm.v1.attention.backends.mla.cpu_mla`). It finds that out in the engine's process, at its first layer.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

CacheDtype = Literal["auto", "fp8"]
"""vLLM's words; `auto` is the precision of the model."""

_CPUINFO: Final = Path("/proc/cpuinfo")
_AVX512: Final = frozenset({"avx512f", "avx512vl", "avx512bw", "avx512dq"})
_HEADS_OF: Final = 32


def cache_dtype(setting: CacheDtype | None, model: Path, device: str, cpuinfo: Path = _CPUINFO) -> CacheDtype:
    """`setting`, or where there is none the best that this machine can do with the model of that directory."""
    if setting is not None:
        return setting
    try:
        config = json.loads((model / "config.json").read_bytes())
    except (OSError, ValueError):
        config = {}  # what is wrong with the directory is said by whoever needs it
    return "auto" if fp8_obstacle(config, device, cpuinfo) else "fp8"


def fp8_obstacle(config: Mapping[str, Any], device: str, cpuinfo: Path = _CPUINFO) -> str:
    """Why a model with this config.json cannot have an FP8 cache on `device`; empty where it can."""
    if device != "cpu":
        return ""
    if config.get("kv_lora_rank") is not None:
        return "vLLM's latent attention has no FP8 cache on a CPU"
    size = _head_size(config)
    if size is not None and size % _HEADS_OF:
        return f"its heads have {size} values, and on a CPU vLLM's FP8 cache takes multiples of {_HEADS_OF}"
    return machine_obstacle(cpuinfo)


def machine_obstacle(cpuinfo: Path = _CPUINFO) -> str:
    """Why this machine's processor cannot have one, whatever the model."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        lines = []
    flags = next((set(line.split()) for line in lines if line.startswith("flags")), set())
    if flags >= _AVX512 or "amx_tile" in flags:
        return ""
    return "vLLM's FP8 cache on a CPU needs AVX-512 or AMX, which this processor has not"


def _head_size(config: Mapping[str, Any]) -> int | None:
    if isinstance(found := config.get("head_dim"), int):
        return found
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    return hidden // heads if isinstance(hidden, int) and isinstance(heads, int) and heads else None
