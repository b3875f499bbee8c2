"""Keys of earlier versions, still read for a while: each is moved to its present name, with one log line.

`learner.objective` and `learner.correction` are tables with a `kind`; the kind alone, as a string, is short for it. So
are `learner.schedule` and `learner.precision` given as a string.

A file with more than `LINES` of them was written by an earlier version and not by hand (a run directory's run.toml
gives every key), so it is one line then: every tool that reads the run would print them all.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

from deploy.config.error_text import shown
from deploy.errors import ConfigError

logger = logging.getLogger(__name__)

RENAMED: Final[Mapping[str, str]] = {
    "run.samples": "run.group_size",
    "learner.old": "learner.old_policy",
    "learner.recompute": "learner.activation_checkpointing",
    "learner.offload": "learner.optimizer.cpu_offload",
    "learner.copies": "learner.parallel.dp_replicate",
    "learner.final_lr_ratio": "learner.schedule.final_ratio",
    "learner.publish_every": "learner.publish.every",
    "learner.max_file_bytes": "learner.publish.max_file_bytes",
    "learner.fp8_recipe": "learner.precision.fp8_recipe",
    "learner.checkpoint_every": "learner.checkpoint.every",
    "learner.keep_checkpoints": "learner.checkpoint.keep",
    "learner.keep_checkpoints_every": "learner.checkpoint.keep_every",
    **{
        f"learner.{name}": f"learner.{section}.{name}"
        for section, names in {
            "optimizer": ("learning_rate", "beta1", "beta2", "weight_decay", "max_grad_norm"),
            "schedule": ("warmup_steps", "decay_steps"),
            "parallel": ("master_port", "rendezvous_timeout_s", "collective_timeout_s", "heartbeat_s"),
        }.items()
        for name in names
    },
}
"""Old key → new key."""

LINES: Final = 10
"""Renamed keys that are named one by one."""

KINDS: Final[Mapping[str, str]] = {"objective": "espo", "correction": "none"}
"""Tagged tables of `learner` → the kind of one that names none."""

SHORT: Final[Mapping[str, str]] = {"schedule": "kind", "precision": "compute"}
"""Tables of `learner` for which a string is short → the key that it gives."""


def current(tables: Mapping[str, Any]) -> dict[str, Any]:
    """`tables` with today's keys. ConfigError: an old key and its new one are both given."""
    found = {name: dict(table) if isinstance(table, Mapping) else table for name, table in tables.items()}
    moved: list[tuple[str, str]] = []
    learner = found.get("learner")
    if isinstance(learner, dict):
        for name, key in SHORT.items():
            if isinstance(learner.get(name), str):
                learner[name] = {key: learner[name]}
        for name, kind in KINDS.items():
            moved += _tag(learner, name, kind)
    for old, new in RENAMED.items():
        moved += _move(found, old, new)
    _warn(moved)
    return found


def current_key(key: str) -> str:
    """Today's name of a dotted key, as `--set` gives it."""
    found = RENAMED.get(key, key)
    for name in KINDS:
        if key.startswith(f"learner.{name}_settings."):
            found = key.replace(f"{name}_settings", name, 1)
    if found != key:
        _warn([(key, found)])
    return found


def _tag(learner: dict[str, Any], name: str, default: str) -> list[tuple[str, str]]:
    given = learner.get(name)
    table: Any = {"kind": given} if isinstance(given, str) else given
    settings = learner.get(f"{name}_settings")
    if isinstance(settings, Mapping):
        del learner[f"{name}_settings"]
        given_too = sorted(settings.keys() & table.keys()) if isinstance(table, Mapping) else []
        if given_too:
            old, new = (f"learner.{holder}.{given_too[0]}" for holder in (f"{name}_settings", name))
            raise ConfigError(
                f"{old} is {shown(settings[given_too[0]])}, but {new}, its new name, is given too; "
                "allowed: the new one alone"
            )
        table = {**(table if isinstance(table, Mapping) else {}), **settings}
    if isinstance(table, Mapping):
        learner[name] = {"kind": table.get("kind", default), **table}
    return [(f"learner.{name}_settings", f"learner.{name}")] if isinstance(settings, Mapping) else []


def _move(tables: dict[str, Any], old: str, new: str) -> list[tuple[str, str]]:
    section, _, key = old.partition(".")
    holder = tables.get(section)
    if not isinstance(holder, dict) or key not in holder:
        return []
    value = holder.pop(key)
    *inner, name = new.split(".")[1:]
    for step in inner:
        given = holder.get(step, {})
        if not isinstance(given, Mapping):
            raise ConfigError(f"{section}.{step} is {shown(given)}; allowed: a table")
        holder[step] = inner_table = dict(given)
        holder = inner_table
    if name in holder:
        raise ConfigError(f"{old} is {shown(value)}, but {new}, its new name, is given too; allowed: the new one alone")
    holder[name] = value
    return [(old, new)]


def _warn(moved: Sequence[tuple[str, str]]) -> None:
    if len(moved) <= LINES:
        for old, new in moved:
            logger.warning("%s is now %s", old, new)
        return
    (first_old, first_new), (second_old, second_new) = moved[0], moved[1]
    logger.warning(
        "the configuration has %d keys of an earlier version, which are read under their new names "
        "(%s is now %s, %s is now %s, …)",
        *(len(moved), first_old, first_new, second_old, second_new),
    )
