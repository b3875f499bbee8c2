"""Checks before anything starts, so that an error in a file is one line and not a service that ends."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from deploy.config.deepseek import check_deepseek
from deploy.config.error_text import shown, suggestion
from deploy.config.run import RunConfig
from deploy.errors import ConfigError
from learner.device_check import check_device, devices, likely_device
from learner.errors import ModelError
from learner.settings import SUPPORTED
from producers.dispatcher.settings import SamplingSettings
from producers.rollouts.kv_cache import fp8_obstacle
from schemas.services import SERVICES
from streams.blobs.store import BlobStore
from streams.errors import ConfigurationError

_LEAST_RANKS: Final = 8


def check(config: RunConfig, services: Iterable[str] = SERVICES) -> int:
    """Checks model directory, sections of `services` and prompts; returns how many prompts a held-back round has.

    ConfigError: the first error found.
    """
    check_model(Path(config.model.path))
    check_engine(config)
    check_ranks(config.run.ranks)
    settings: dict[str, Any] = {service: config.service(service) for service in services}
    if "learner" in settings:
        try:
            check_device(settings["learner"])
        except ModelError as error:
            raise ConfigError(f"learner: {error}") from None
    check_trainable(config)
    if "dispatcher" not in settings:
        return 0
    remember_s, timeout_s = config.service("groups").remember_s, settings["dispatcher"].group_timeout_s
    if remember_s <= timeout_s:
        raise ConfigError(
            f"groups.remember_s is {remember_s:g}; allowed: more than dispatcher.group_timeout_s, which is "
            f"{timeout_s:g}, for a restarted aggregator ends the groups that are older"
        )
    from deploy.config.prompt_check import check_prompts
    from producers.dispatcher.service import load_prompts

    prompts, held_back = load_prompts(settings["dispatcher"])
    check_prompts(config, [*prompts, *held_back])
    return len(held_back) if settings["dispatcher"].evaluate_samples else 0


def check_ranks(ranks: int) -> None:
    """ConfigError: more ranks than this machine, which starts them all, can hold."""
    if likely_device() == "cuda":
        most, why = devices(), "the CUDA devices here"
    else:
        most, why = max(_LEAST_RANKS, 4 * (os.cpu_count() or 1)), "four for each of this machine's cores"
    if 0 < most < ranks:
        raise ConfigError(f"run.ranks is {ranks}; allowed: at most {most}, {why}")


def check_trainable(config: RunConfig) -> None:
    """ConfigError: values that are valid one by one, but with which nothing would be trained."""
    if config.run.group_size < 2:
        raise ConfigError(
            f"run.group_size is {config.run.group_size}; allowed: at least 2, for a group of one rollout has no "
            f"variance"
        )
    if config.service("groups").min_samples > config.run.group_size:
        raise ConfigError(
            f"groups.min_samples is {config.service('groups').min_samples}; allowed: at most run.group_size, "
            f"which is {config.run.group_size}"
        )
    if config.replicas.groups > config.run.partitions:
        raise ConfigError(
            f"replicas.groups is {config.replicas.groups}; allowed: at most run.partitions, which is "
            f"{config.run.partitions}, for an aggregator without a partition has nothing to read"
        )
    drawn, longest = config.service("dispatcher").sampling, config.service("producer").max_model_len
    if drawn.max_tokens >= longest and drawn.max_tokens != SamplingSettings().max_tokens:
        # The default is as much as there is room for; a number of one's own is meant.
        raise ConfigError(
            f"dispatcher.sampling.max_tokens is {drawn.max_tokens}; allowed: fewer than producer.max_model_len, which "
            f"is {longest} for prompt and response together"
        )
    budget = config.service("batches").token_budget
    if budget < longest:
        raise ConfigError(
            f"batches.token_budget is {budget}; allowed: at least producer.max_model_len, which is {longest}, "
            "for a sequence that fits no micro-batch is never trained on"
        )
    most = config.service("learner").max_sequence_tokens
    if most is not None and most < longest:
        raise ConfigError(
            f"learner.max_sequence_tokens is {most}; allowed: at least producer.max_model_len, which is {longest}, "
            "for what is longer is generated and never trained on"
        )
    if drawn.temperature == 0 or drawn.top_p != 1 or drawn.top_k != 0:
        raise ConfigError(
            f"dispatcher.sampling is temperature {drawn.temperature:g}, top_p {drawn.top_p:g}, top_k {drawn.top_k}; "
            "allowed: temperature above 0, top_p 1 and top_k 0, for the learner cannot weigh tokens that were cut off"
        )
    dispatcher = config.service("dispatcher")
    longest_s = dispatcher.group_timeout_s + dispatcher.outcome_grace_s
    if 0 < config.run.retention_h * 3600 < longest_s:
        raise ConfigError(
            f"run.retention_h is {config.run.retention_h:g}; allowed: 0 (indefinitely), or at least "
            f"{longest_s / 3600:.2g}, dispatcher.group_timeout_s and outcome_grace_s together, for what is deleted "
            "sooner is deleted before it is trained on"
        )
    if config.blobs.uri:
        try:
            BlobStore(config.blobs.uri)
        except ConfigurationError as error:
            raise ConfigError(f"blobs.uri: {error}") from None
    every, staleness = config.service("learner").publish.every, config.run.max_staleness
    if every > staleness + 1:
        raise ConfigError(
            f"learner.publish.every is {every} with run.max_staleness {staleness}; allowed: at most {staleness + 1}, "
            "for the batches until the next publication would all be stale"
        )


def check_engine(config: RunConfig) -> None:
    """ConfigError: a model that the learner can train, but that the producers' engine would compute differently."""
    producer, directory = config.service("producer"), Path(config.model.path)
    read = json.loads((directory / "config.json").read_bytes())
    check_deepseek(str(directory), read, producer.device)
    if producer.kv_cache_dtype == "fp8" and (why := fp8_obstacle(read, producer.device)):
        raise ConfigError(
            f'producer.kv_cache_dtype is "fp8" with model {directory} on producer.device {producer.device}; allowed: '
            f'"auto", or leave it out: {why}'
        )
    positions, rope = read.get("max_position_embeddings"), read.get("rope_parameters") or read.get("rope_scaling") or {}
    if isinstance(positions, int) and "factor" not in rope and producer.max_model_len > positions:
        raise ConfigError(
            f"producer.max_model_len is {producer.max_model_len}; allowed: at most {positions}, "
            "max_position_embeddings of the model"
        )


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
    if family not in SUPPORTED:
        close = suggestion(str(family), list(SUPPORTED))
        slip = f" (did you mean {close}?)" if close else ""
        raise ConfigError(
            f"model.path is {shown(str(directory))} of family {shown(family)}; allowed: {', '.join(SUPPORTED)}{slip}"
        )
    if not any(directory.glob("*.safetensors")):
        raise ConfigError(
            f"model.path is {shown(str(directory))}, which holds no *.safetensors; allowed: a model with weights"
        )
    if not (directory / "tokenizer.json").is_file():
        raise ConfigError(
            f"model.path is {shown(str(directory))}, which holds no tokenizer.json; allowed: a model with one"
        )
