"""Exact match: the response's answer is the reference's text, whitespace at both ends aside.

Reference: the answer as a text, or `{"answer": "13", "after": "="}`: then the response's answer is what follows the
last occurrence of `after`, and a response without `after` is wrong.
"""

from collections.abc import Mapping
from typing import Any, Final

from consumers.rewards.verifiers import Sample, VerifierError, text_of

VERSION: Final = "1"


def warm() -> None:
    """Nothing to import."""


def check_reference(reference: str | Mapping[str, Any]) -> None:
    """Raises VerifierError where it has no answer, or an empty one: saying nothing would be right."""
    expected, _ = _read(reference)
    if not expected:
        raise VerifierError(f"reference {reference!r} has an empty answer, so that an empty response is right")


def check(sample: Sample) -> float:
    """1.0 or 0.0."""
    expected, after = _read(sample.reference)
    answer = sample.text
    if after is not None:
        _, found, answer = sample.text.rpartition(after)
        if not found:
            return 0.0
    return float(answer.strip() == expected)


def _read(reference: str | Mapping[str, Any]) -> tuple[str, str | None]:
    """The expected answer, and after what the response's stands, None: the whole response is it."""
    expected = text_of(reference, "answer").strip()
    after = None if isinstance(reference, str) else reference.get("after")
    if after is not None and (not isinstance(after, str) or not after):
        raise VerifierError(f"reference has after {after!r} and not a text of at least one character")
    return expected, after
