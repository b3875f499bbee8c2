"""The settings that a step depends on, flat, and their digest: two steps with one digest were trained alike.

    trained_settings(config)["learner.optimizer.learning_rate"]    # 3e-4
    config_digest(trained_settings(config))                        # sha256:…

Every service process computes the digest of the configuration that it was started with
(`RunContext.config_digest`), and `StepCompleted` records the learner's.
"""

import hashlib
import math
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from deploy.config.run import RunConfig

UNTRAINED: Final = (
    "blobs",
    "broker",
    "replicas",
    "supervisor",
    "tracing",
    "run.drain_s",
    "run.id",
    "run.partitions",
    "run.replication",
    "run.retention_h",
    "run.steps",
    "dispatcher.evaluate_every",
    "dispatcher.evaluate_samples",
    "dispatcher.final_evaluation_wait_s",
    "dispatcher.outcome_grace_s",
    "producer.call_timeout_s",
    "producer.request_timeout_s",
    "producer.start_timeout_s",
    "rewards.max_in_flight",
    "rewards.pool_size",
    "rewards.prewarm",
    "groups.remember_groups",
    "groups.remember_s",
    "groups.unheard_s",
    "learner.checkpoint",
    "learner.fetch_timeout_s",
    "learner.measure_replay_every",
    "learner.parallel.collective_timeout_s",
    "learner.parallel.heartbeat_s",
    "learner.parallel.master_port",
    "learner.parallel.rendezvous_timeout_s",
    "learner.publish.canary",
    "learner.publish.canary_bound",
    "learner.publish.max_file_bytes",
)
"""Sections and keys on which no step depends: where things are kept, how long is waited, what is only reported, and how
many steps there are to be. Whatever is not named here counts, so that a new setting is not forgotten."""


def trained_settings(config: RunConfig) -> dict[str, Any]:
    """`section.key` → value of every setting that a step depends on, defaults too. ConfigError: as `service`."""
    flat = flattened(config.tables())
    if config.run.steps and flat["learner.schedule.kind"] != "constant":
        # The one way in which a step depends on how many there are to be.
        flat.setdefault("learner.schedule.decay_steps", config.run.steps)
    return {key: value for key, value in sorted(flat.items()) if not _is_untrained(key)}


def flattened(tables: Mapping[str, Any]) -> dict[str, Any]:
    """`section.key` → value of every value in `tables`, sorted by key; what is None is left out."""
    flat: dict[str, Any] = {}
    _flatten("", tables, flat)
    return dict(sorted(flat.items()))


def config_digest(settings: Mapping[str, Any]) -> str:
    """`sha256:` and the SHA-256 (hexadecimal) of the settings as JSON, keys in order; what is None is left out.

    Infinities, for which JSON has no number, are text.
    """
    given = {
        key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in settings.items()
        if value is not None
    }
    return "sha256:" + hashlib.sha256(msgspec.json.encode(given, order="deterministic")).hexdigest()


def _flatten(prefix: str, table: Mapping[str, Any], flat: dict[str, Any]) -> None:
    for name, value in table.items():
        if isinstance(value, Mapping):
            _flatten(f"{prefix}{name}.", value, flat)
        elif value is not None:
            flat[f"{prefix}{name}"] = value


def _is_untrained(key: str) -> bool:
    return any(key == entry or key.startswith(f"{entry}.") for entry in UNTRAINED)
