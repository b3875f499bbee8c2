"""Math-Verify: the response's answer and the reference are the same mathematical object, or the same words.

Reference: the answer as a text, or `{"answer": ...}`: LaTeX or plain, bare, boxed or between dollar signs, as the
answer columns of MATH, GSM8K, AIME and DAPO-Math have it. The response's answer is its last box, else what it states
as its answer, else its last formula. Formulas are compared by the package math-verify as it is meant to be used: both
sides as LaTeX. Where this differs from the package (the table of tests/consumers/rewards/answer_pairs.py shows each):

- words are compared as words (the package takes them as products of letters: `listen` equals `silent`), option letters
  and times of day as such, numbers with a base only with the same base;
- a unit may be left out, but a different one is wrong (the package drops all units);
- a percentage equals its number with or without the sign, and its hundredth;
- `1e5` is a number, `10\\,000` and `10 000` are ten thousand;
- an answer that the package cannot read is wrong, never equal by a common prefix.

Runs in the pool, whose deadline stops what does not end, so the package's own alarms are off.
"""

import functools
import logging
import re
from collections.abc import Mapping
from typing import Any, Final

from consumers.rewards.verifiers import Sample, VerifierError, text_of
from consumers.rewards.verifiers.answers import (
    Answer,
    is_boxed,
    is_percentage_of,
    last_quantity,
    read_answer,
    reference_answer,
    same_text,
    stated_answer,
    units_differ,
)

VERSION: Final = "2"

_OTHER: Final = "271828.1828"
"""An answer that no reference means."""

_PLAIN: Final = re.compile(r"-?\d{1,30}")


def warm() -> None:
    """Imports the package and its grammar."""
    _formula("1")


def check_reference(reference: str | Mapping[str, Any]) -> None:
    """Raises VerifierError where it cannot be read, or is not judged right as its own response."""
    given = text_of(reference, "answer").strip()
    if _PLAIN.fullmatch(given):
        return  # Most answers of most data sets: the grammar takes milliseconds for each.
    expected = read_reference(reference)
    responses = (given if is_boxed(given) else f"\\boxed{{{given}}}", f"\\boxed{{{expected.text}}}")
    # Where another answer makes the grammar hang, every wrong response would cost its time-out.
    if check(Sample(f"\\boxed{{{_OTHER}}}", reference)) == 1.0:
        raise VerifierError(f"reference {given!r}, read as {expected.text!r}, takes {_OTHER} for right")
    if not any(check(Sample(response, reference)) == 1.0 for response in responses):
        raise VerifierError(f"reference {given!r}, read as {expected.text!r}, is not judged right as its own answer")


def check(sample: Sample) -> float:
    """1.0 or 0.0. Raises VerifierError where the package is not installed or the reference cannot be read."""
    expected = read_reference(sample.reference)
    stated = stated_answer(sample.text)
    if stated is None:
        return float(_is_last_formula(sample.text, expected))
    if _is_right(read_answer(stated, expected), expected):
        return 1.0
    # A sentence about the answer ("the answer is the sum, 3 + 4 = 7") holds it as its last formula.
    return float(not is_boxed(sample.text) and _is_last_formula(stated, expected))


def read_reference(reference: Any) -> Answer:
    """The reference in the form in which it is compared. VerifierError: it cannot be read."""
    given = text_of(reference, "answer")
    expected = reference_answer(given)
    if not expected.text:
        raise VerifierError(f"reference {given!r} is empty")
    if expected.kind == "formula" and not _formula(expected.text):
        raise VerifierError(f"reference {given!r} is no formula, number, word or option letter that can be read")
    return expected


def _is_right(answer: Answer, expected: Answer) -> bool:
    if units_differ(answer, expected):
        return False
    if answer.kind == expected.kind and same_text(answer, expected):
        return True
    if expected.kind != "formula" or answer.kind != "formula":
        # A number that names no base is taken to be in the reference's.
        return expected.kind == "based" and answer.kind == "formula" and answer.text == expected.text
    if _verify(expected.text, _formula(answer.text)):
        return True
    if is_percentage_of(expected, answer):
        return _verify(_hundredth(expected), _formula(answer.text))
    return is_percentage_of(answer, expected) and _verify(expected.text, _formula(_hundredth(answer)))


def _hundredth(answer: Answer) -> str:
    return f"\\frac{{{answer.text}}}{{100}}"


def _is_last_formula(text: str, expected: Answer) -> bool:
    """A response that states no answer: all of it, or its last formula."""
    if len(text) < 200 and _is_right(read_answer(text, expected), expected):
        return True
    # The package reads no units: 5 s would be right where 5 m is asked for.
    if units_differ(read_answer(last_quantity(text), expected), expected):
        return False
    parse, _ = _package()
    return expected.kind == "formula" and _verify(expected.text, _parsed(parse(text, parsing_timeout=None)))


def _verify(expected: str, answer: tuple[Any, ...]) -> bool:
    _, verify = _package()
    return bool(answer) and bool(verify(list(_formula(expected)), list(answer), timeout_seconds=None))


@functools.lru_cache(maxsize=1024)
def _formula(text: str) -> tuple[Any, ...]:
    """What math-verify reads in a piece of LaTeX; empty where it reads nothing."""
    parse, _ = _package()
    from math_verify import LatexExtractionConfig

    return _parsed(parse(f"${text}$", [LatexExtractionConfig()], parsing_timeout=None))


def _parsed(found: list[Any]) -> tuple[Any, ...]:
    """Without the text that the package adds to compare by when it could not read anything."""
    return tuple(item for item in found if not isinstance(item, str))


def _package() -> tuple[Any, Any]:
    try:
        from math_verify import parse, verify
    except ModuleNotFoundError:
        raise VerifierError("verifier math_verify needs the package math-verify, which is not installed") from None
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    return parse, verify
