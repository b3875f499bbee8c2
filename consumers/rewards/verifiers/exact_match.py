"""Exact match: the response's answer is the reference's text, whitespace at both ends aside.

Reference: the answer as a text, or `{"answer": "13", "after": "="}`: then the response's answer is what follows the
last occurrence of `after`, and a response without `after` is wrong.
"""

from typing import Final

from consumers.rewards.verifiers import Sample, VerifierError, text_of

VERSION: Final = "1"


def warm() -> None:
    """Nothing to import."""


def check(sample: Sample) -> float:
    """1.0 or 0.0."""
    expected = text_of(sample.reference, "answer").strip()
    answer = sample.text
    if not isinstance(sample.reference, str) and (after := sample.reference.get("after")) is not None:
        if not isinstance(after, str) or not after:
            raise VerifierError(f"reference has after {after!r} and not a text of at least one character")
        _, found, answer = sample.text.rpartition(after)
        if not found:
            return 0.0
    return float(answer.strip() == expected)
