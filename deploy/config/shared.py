"""Shared settings, and which services receive them.

A setting that several services must agree on is given once in the TOML and handed to each; giving it in a service's
section is an error, so that no two services can disagree.
"""

from collections.abc import Mapping
from typing import Any, Final

from deploy.config.error_text import shown
from deploy.errors import ConfigError

HANDED_ON: Final[Mapping[str, tuple[str, ...]]] = {
    "model.path": ("producer.model", "rewards.model", "batches.model", "learner.model"),
    "run.steps": ("dispatcher.max_steps", "batches.max_batches", "learner.max_steps"),
    "run.group_size": ("dispatcher.samples",),
    "run.groups_per_batch": ("dispatcher.groups_per_batch", "batches.groups_per_batch"),
    "run.max_staleness": ("dispatcher.max_staleness", "batches.max_staleness"),
    "run.retention_h": ("dispatcher.retention_h",),
    "run.ranks": ("learner.ranks", "batches.ranks"),
    "prompts": ("dispatcher.source",),
    "held_back": ("dispatcher.held_back",),
}
"""The key at which it is given → the settings that receive it."""


def handed_to(service: str) -> dict[str, str]:
    """Field of the service's settings → the key that it comes from."""
    return {
        target.removeprefix(f"{service}."): source
        for source, targets in HANDED_ON.items()
        for target in targets
        if target.startswith(f"{service}.")
    }


def with_shared(service: str, section: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """A service's section together with what it is handed of `facts` (key → value; a fact that is None is left out).

    ConfigError: the section gives a shared fact itself.
    """
    handed = handed_to(service)
    for field, source in handed.items():
        if field in section:
            raise ConfigError(
                f"{service}.{field} is {shown(section[field])}, but services share it; allowed: give it as {source}"
            )
    values = {field: facts[source] for field, source in handed.items() if facts.get(source) is not None}
    return {**section, **values}
