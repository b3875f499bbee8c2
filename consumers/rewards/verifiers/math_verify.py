"""Math-Verify: the response's last formula and the reference's answer are the same mathematical object.

Reference: the answer as a text (LaTeX or plain), or `{"answer": ...}`. Runs in the pool, whose deadline stops what does
not end, so the package's own alarms are off.
"""

import logging
from typing import Any, Final

from consumers.rewards.verifiers import Sample, VerifierError, text_of

VERSION: Final = "1"


def warm() -> None:
    """Imports the package and its grammar."""
    parse, _ = _package()
    parse("$1$", parsing_timeout=None)


def check(sample: Sample) -> float:
    """1.0 or 0.0. Raises VerifierError where the package is not installed or the reference is no formula."""
    parse, verify = _package()
    expected = text_of(sample.reference, "answer")
    gold = parse(expected, parsing_timeout=None)
    if not gold:
        raise VerifierError(f"reference {expected!r} holds no formula")
    return float(verify(gold, parse(sample.text, parsing_timeout=None), timeout_seconds=None))


def _package() -> tuple[Any, Any]:
    try:
        from math_verify import parse, verify
    except ModuleNotFoundError:
        raise VerifierError("verifier math_verify needs the package math-verify, which is not installed") from None
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    return parse, verify
