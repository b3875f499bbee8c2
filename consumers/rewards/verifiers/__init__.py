"""The verifiers: each judges a response's text against the prompt's reference.

A new one is a module here with `VERSION`, `warm()`, `check_reference(reference)` and `check(sample)` (see `Verifier`),
its name in `schemas/verifiers.py`, and, where a check takes more than microseconds, its name in `_POOLED`: then it runs
in the pool's processes under a deadline. It is imported when first used, because reasoning-gym and math-verify take
seconds and a hundred megabytes that the service itself never pays.
"""

import functools
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

from schemas.verifiers import VERIFIERS

NAMES: Final = VERIFIERS

_POOLED: Final = frozenset({"math_verify", "reasoning_gym"})


class VerifierError(Exception):
    """A verifier comes to no verdict: the message says why in one sentence, and the rollout ends as `invalid`."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What a verifier sees: a response's text without special tokens, and the prompt's reference."""

    text: str
    reference: str | Mapping[str, Any]


class Verifier(Protocol):
    """A verifier's module."""

    VERSION: str

    def warm(self) -> None:
        """Imports what `check` needs, where that takes more than milliseconds. Raises VerifierError."""

    def check_reference(self, reference: str | Mapping[str, Any]) -> None:
        """Judges a reference before the run starts. Raises VerifierError where no response could be right."""

    def check(self, sample: Sample) -> float:
        """The share of the task that the response solves, 0..1. Raises VerifierError."""


def is_pooled(name: str) -> bool:
    """Whether the verifier runs in the process pool; one that takes microseconds runs in the service itself."""
    return name in _POOLED


@functools.cache
def load(name: str) -> Verifier:
    """The verifier's module, imported. VerifierError names what is allowed."""
    if name not in NAMES:
        raise VerifierError(f"verifier {name!r} is not one of {', '.join(NAMES)}")
    return cast(Verifier, importlib.import_module(f"{__name__}.{name}"))


def text_of(reference: str | Mapping[str, Any], key: str) -> str:
    """`reference` itself, or the text under `key` of it. VerifierError where there is none."""
    value = reference if isinstance(reference, str) else reference.get(key)
    if not isinstance(value, str):
        raise VerifierError(f"reference has {key} {value!r} and not a text")
    return value
