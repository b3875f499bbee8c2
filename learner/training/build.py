"""Builds one rank's components: process groups, sharded model, optimizer, checkpoints. All of it is blocking."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from learner.checkpoint.manager import CheckpointManager, fingerprint, refuse_foreign
from learner.checkpoint.retention import Retention
from learner.device_check import Device, check_device
from learner.model.policy import (
    ModelShape,
    Policy,
    build_policy,
    build_reference,
    model_shape,
    read_config,
    stored_tensors,
)
from learner.ranks.group import RankGroup, join_group
from learner.ranks.lifeline import RendezvousInfo
from learner.settings import LearnerSettings
from learner.training.step import Trainer, build_objective
from learner.weights import refuse_unpublishable
from streams.context import RunContext


@dataclass(frozen=True)
class LearnerComponents:
    """What one rank trains with. `stored`: name and shape of each tensor in the model's directory, as published."""

    ranks: RankGroup
    stored: dict[str, tuple[int, ...]]
    policy: Policy
    shape: ModelShape
    trainer: Trainer
    checkpoints: CheckpointManager


def check_settings(settings: LearnerSettings, context: RunContext) -> None:
    """Refuse settings that cannot train, before the rendezvous.

    ModelError: the model, a setting or this machine. ForeignCheckpointError: checkpoints of another run or model.
    """
    read_config(Path(settings.model))
    device: Device = "cuda" if torch.cuda.is_available() else "cpu"
    check_device(settings, device)
    build_objective(settings)
    stored = stored_tensors(Path(settings.model))
    refuse_unpublishable(Path(settings.model), stored)
    refuse_foreign(_directory(context), _origin(context, stored))


def build_components(
    settings: LearnerSettings, context: RunContext, info: RendezvousInfo, on_joined: Callable[[], None]
) -> LearnerComponents:
    """Form the process groups, call `on_joined`, then load and shard the model. ModelError, LearnerError."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    _make_deterministic(settings, context.seed)
    ranks = join_group(info, settings.parallel.collective_timeout_s, settings.parallel.dp_replicate)
    on_joined()
    directory = Path(settings.model)
    stored = stored_tensors(directory)
    policy = build_policy(directory, settings, ranks.mesh)
    shape = model_shape(policy.model, settings.max_sequence_tokens)
    reference = build_reference(directory, settings, ranks.mesh) if settings.kl_coefficient else None
    return LearnerComponents(
        ranks=ranks,
        stored=stored,
        policy=policy,
        shape=shape,
        trainer=Trainer(policy, shape, settings, ranks, reference),
        checkpoints=CheckpointManager(
            _directory(context),
            _origin(context, stored),
            Retention(settings.checkpoint.keep, settings.checkpoint.keep_every),
            ranks,
        ),
    )


def _directory(context: RunContext) -> Path:
    return context.directory / "checkpoints"


def _origin(context: RunContext, stored: Mapping[str, tuple[int, ...]]) -> str:
    """The run and model that checkpoints record as their own."""
    return f"{context.run}/{fingerprint(stored)}"


def _make_deterministic(settings: LearnerSettings, seed: int) -> None:
    torch.set_num_threads(settings.threads)
    if settings.attention == "flex_attention":
        torch.use_deterministic_algorithms(True)
    else:
        # The same effect without importing the compiler, which costs every start a second or two.
        torch.set_deterministic_debug_mode("error")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.manual_seed(seed)
