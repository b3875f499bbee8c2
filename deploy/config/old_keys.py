"""Keys of earlier versions, still read for a while: each is moved to its present name, with one log line.

`learner.objective` and `learner.correction` are tables with a `kind`; the kind alone, as a string, is short for it.
"""

import logging
from collections.abc import Mapping
from typing import Any, Final

from deploy.config.error_text import shown
from deploy.errors import ConfigError

logger = logging.getLogger(__name__)

RENAMED: Final[Mapping[str, str]] = {
    "run.samples": "run.group_size",
    "learner.old": "learner.old_policy",
    "learner.recompute": "learner.activation_checkpointing",
    "learner.offload": "learner.cpu_offload",
    "learner.copies": "learner.dp_replicate",
}
"""Old key → new key, in the same section."""

KINDS: Final[Mapping[str, str]] = {"objective": "espo", "correction": "none"}
"""Tagged tables of `learner` → the kind of one that names none."""


def current(tables: Mapping[str, Any]) -> dict[str, Any]:
    """`tables` with today's keys. ConfigError: an old key and its new one are both given."""
    found = {name: dict(table) if isinstance(table, Mapping) else table for name, table in tables.items()}
    for old, new in RENAMED.items():
        section, _, key = old.partition(".")
        table = found.get(section)
        if isinstance(table, dict) and key in table:
            _move(table, key, new.partition(".")[2], section)
    learner = found.get("learner")
    if isinstance(learner, dict):
        for name, kind in KINDS.items():
            _tag(learner, name, kind)
    return found


def current_key(key: str) -> str:
    """Today's name of a dotted key, as `--set` gives it."""
    if key in RENAMED:
        _warn(key, RENAMED[key])
    return RENAMED.get(key, key)


def _tag(learner: dict[str, Any], name: str, default: str) -> None:
    given = learner.get(name)
    table: Any = {"kind": given} if isinstance(given, str) else given
    settings = learner.get(f"{name}_settings")
    if isinstance(settings, Mapping):
        del learner[f"{name}_settings"]
        _warn(f"learner.{name}_settings", f"learner.{name}")
        table = {**(table if isinstance(table, Mapping) else {}), **settings}
    if isinstance(table, Mapping):
        learner[name] = {"kind": table.get("kind", default), **table}


def _move(table: dict[str, Any], old: str, new: str, section: str) -> None:
    if new in table:
        raise ConfigError(
            f"{section}.{old} is {shown(table[old])}, but {section}.{new}, its new name, is given too; allowed: the "
            f"new one"
        )
    table[new] = table.pop(old)
    _warn(f"{section}.{old}", f"{section}.{new}")


def _warn(old: str, new: str) -> None:
    logger.warning("%s is now %s", old, new)
