"""Where each service's code is: its settings and its `main`, found by name.

Looked up by name, because importing the learner imports torch, and neither the command nor the light services may.
"""

import importlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from schemas.services import SERVICES

ROOMS: Final[Mapping[str, tuple[str, str]]] = {
    "dispatcher": ("producers.dispatcher", "DispatcherSettings"),
    "producer": ("producers.rollouts", "ProducerSettings"),
    "rewards": ("consumers.rewards", "RewardSettings"),
    "groups": ("consumers.groups", "GroupSettings"),
    "batches": ("consumers.batches", "BatchSettings"),
    "learner": ("learner", "LearnerSettings"),
}
"""Service → its package, and the struct in its `settings` that its section of a TOML is read into."""

assert ROOMS.keys() == SERVICES.keys()


def settings_class(service: str) -> type[Any]:
    """The struct of a service's section."""
    package, name = ROOMS[service]
    found: type[Any] = getattr(importlib.import_module(f"{package}.settings"), name)
    return found


def main_of(service: str) -> Callable[[Any, Any], Awaitable[None]]:
    """A service's `main(service context, settings)`, its module imported."""
    main: Callable[[Any, Any], Awaitable[None]] = importlib.import_module(f"{ROOMS[service][0]}.service").main
    return main
