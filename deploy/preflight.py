"""What is checked before anything starts, so that a wrong file is one line and not a dead service."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from deploy.config import RunConfig
from deploy.errors import ConfigError
from deploy.sharing import SERVICES
from deploy.strict import shown, suggestion

FAMILIES: Final = ("qwen3_moe", "qwen2_moe", "mixtral", "olmoe", "deepseek_v3", "glm4_moe")
"""`model_type` of the models whose routers can be replayed (learner/replay/families.py)."""


def check(config: RunConfig, services: Sequence[str] = SERVICES) -> int:
    """Checks model directory, sections of `services` and prompts; the number of prompts in a held-back round.

    ConfigError: the first thing that is wrong.
    """
    check_model(Path(config.model.path))
    settings: dict[str, Any] = {service: config.service(service) for service in services}
    if "dispatcher" not in settings:
        return 0
    from producers.dispatcher.service import load_prompts

    _, held_back = load_prompts(settings["dispatcher"])
    return len(held_back) if settings["dispatcher"].evaluate_samples else 0


def check_model(directory: Path) -> None:
    """ConfigError: no Hugging Face directory with weights and tokenizer of a supported family."""
    if not directory.is_dir():
        raise ConfigError(
            f"model.path is {shown(str(directory))}, which is no directory; allowed: a Hugging Face model"
        )
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        family = config["model_type"]
    except OSError as error:
        raise ConfigError(
            f"model.path is {shown(str(directory))}, whose config.json cannot be read: {error.strerror}"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"model.path is {shown(str(directory))}, whose config.json names no model_type") from None
    if family not in FAMILIES:
        close = suggestion(str(family), list(FAMILIES))
        slip = f" (did you mean {close}?)" if close else ""
        raise ConfigError(
            f"model.path is {shown(str(directory))} of family {shown(family)}; allowed: {', '.join(FAMILIES)}{slip}"
        )
    if not any(directory.glob("*.safetensors")):
        raise ConfigError(
            f"model.path is {shown(str(directory))}, which holds no *.safetensors; allowed: a model with weights"
        )
    if not (directory / "tokenizer.json").is_file():
        raise ConfigError(
            f"model.path is {shown(str(directory))}, which holds no tokenizer.json; allowed: a model with one"
        )
