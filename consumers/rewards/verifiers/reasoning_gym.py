"""Reasoning Gym: the score function of the task that made the prompt; many tasks give fractional scores.

Reference: `{"dataset": "chain_sum", "entry": {...}}`, the task's name and its entry as generated. The answer is the
text of the last `<answer>` element, or the whole response where there is none.
"""

import functools
import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Final

from consumers.rewards.verifiers import Sample, VerifierError

VERSION: Final = "1"


def warm() -> None:
    """Imports the package with all of its tasks."""
    with warnings.catch_warnings():
        # Compiling one of its dependencies for the first time prints eight lines about the dependency's own code.
        warnings.filterwarnings("ignore", category=SyntaxWarning, module=".*cellpylib.*")
        importlib.import_module("reasoning_gym")


def check_reference(reference: str | Mapping[str, Any]) -> None:
    """Raises VerifierError where it names no task, or the task cannot score its own entry's answer."""
    score, entry = _read(reference)
    answer = entry.get("answer")
    own = score(answer if isinstance(answer, str) else "", entry)
    if isinstance(answer, str) and not own > 0:
        raise VerifierError(f"the entry's own answer {answer!r} has score 0 in its task")


def check(sample: Sample) -> float:
    """The task's own score, 0..1."""
    score, entry = _read(sample.reference)
    return min(1.0, max(0.0, float(score(answer_of(sample.text), entry))))


def _read(reference: str | Mapping[str, Any]) -> tuple[Callable[[str, dict[str, Any]], float], dict[str, Any]]:
    """The task's score function, and the entry."""
    if isinstance(reference, str):
        raise VerifierError("reference is a text and not a mapping with dataset and entry")
    dataset, entry = reference.get("dataset"), reference.get("entry")
    if not isinstance(dataset, str) or not isinstance(entry, dict):
        raise VerifierError(f"reference has dataset {dataset!r} and entry of type {type(entry).__name__}")
    return _score_function(dataset), entry


def answer_of(text: str) -> str:
    """What a response answers."""
    _, opened, rest = text.rpartition("<answer>")
    return (rest.partition("</answer>")[0] if opened else text).strip()


@functools.cache
def _score_function(dataset: str) -> Callable[[str, dict[str, Any]], float]:
    warm()
    import reasoning_gym

    try:
        found: Callable[[str, dict[str, Any]], float] = reasoning_gym.get_score_answer_fn(dataset)
    except ValueError as error:
        raise VerifierError(f"reference has dataset {dataset!r}: {error}") from None
    return found
