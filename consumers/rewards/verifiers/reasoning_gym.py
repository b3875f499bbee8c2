"""Reasoning Gym: the score function of the task that made the prompt; many tasks give fractional scores.

Reference: `{"dataset": "chain_sum", "entry": {...}}`, the task's name and its entry as generated. The answer is the
text of the last `<answer>` element, or the whole response where there is none.
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any, Final

from consumers.rewards.verifiers import Sample, VerifierError

VERSION: Final = "1"


def warm() -> None:
    """Imports the package with all of its tasks."""
    importlib.import_module("reasoning_gym")


def check(sample: Sample) -> float:
    """The task's own score, 0..1."""
    if isinstance(sample.reference, str):
        raise VerifierError("reference is a text and not a mapping with dataset and entry")
    dataset, entry = sample.reference.get("dataset"), sample.reference.get("entry")
    if not isinstance(dataset, str) or not isinstance(entry, dict):
        raise VerifierError(f"reference has dataset {dataset!r} and entry of type {type(entry).__name__}")
    score = _score_function(dataset)
    return min(1.0, max(0.0, float(score(answer_of(sample.text), entry))))


def answer_of(text: str) -> str:
    """What a response answers."""
    _, opened, rest = text.rpartition("<answer>")
    return (rest.partition("</answer>")[0] if opened else text).strip()


@functools.cache
def _score_function(dataset: str) -> Callable[[str, dict[str, Any]], float]:
    import reasoning_gym

    try:
        found: Callable[[str, dict[str, Any]], float] = reasoning_gym.get_score_answer_fn(dataset)
    except ValueError as error:
        raise VerifierError(f"reference has dataset {dataset!r}: {error}") from None
    return found
