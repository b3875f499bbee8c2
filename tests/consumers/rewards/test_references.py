"""Every reference is judged before the start; one that does not come to an end costs its time and is named."""

import sys
from typing import Any

import pytest

from consumers.rewards import references
from consumers.rewards.references import unreadable
from streams.errors import DeadlineError, StreamsError
from tests.consumers.rewards.answer_pairs import PAIRS

SLOW = """
import json, sys, time
given = [json.loads(line) for line in sys.stdin]
print('"ready"', flush=True)
for name, reference in given:
    if reference == "hangs":
        time.sleep(60)
    if reference == "dies":
        sys.exit(1)
    print(json.dumps("no" if reference == "bad" else None), flush=True)
"""


def test_each_form_that_data_sets_have_is_readable() -> None:
    assert list(unreadable([("math_verify", reference) for reference, _, _ in PAIRS], 30.0)) == []


@pytest.mark.parametrize(
    ("verifier", "reference", "why"),
    [
        ("math_verify", "", "reference '' is empty"),
        ("math_verify", "\\foo{", "is no formula, number, word or option letter that can be read"),
        ("math_verify", "271828.1828", "takes 271828.1828 for right"),
        ("math_verify", {"answer": 3}, "reference has answer 3 and not a text"),
        ("exact_match", "  ", "has an empty answer, so that an empty response is right"),
        ("exact_match", {"answer": "4", "after": ""}, "reference has after ''"),
        ("reasoning_gym", "4", "reference is a text and not a mapping"),
        ("reasoning_gym", {"dataset": "nope", "entry": {}}, "Dataset 'nope' not registered"),
        ("reasoning_gym", {"dataset": "chain_sum", "entry": {}}, "makes its verifier fail: KeyError"),
    ],
)
def test_a_reference_that_no_response_could_match_is_named(verifier: str, reference: Any, why: str) -> None:
    good = ("exact_match", "4")
    found = list(unreadable([good, (verifier, reference), good, (verifier, reference)], 30.0))
    assert [index for index, _ in found] == [1, 3]
    assert why in found[0][1]


def test_what_hangs_or_ends_the_child_is_named_and_the_others_are_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "CHILD", (sys.executable, "-c", SLOW))
    monkeypatch.setattr(references, "START_S", 5.0)
    given = [("exact_match", text) for text in ("good", "hangs", "bad", "dies", "hangs", "good")]
    found = dict(unreadable(given, 1.0))
    assert sorted(found) == [1, 2, 3, 4]
    assert found[2] == "no" and "does not come to an end with it within 1 s" in found[1]
    assert found[3] == "its verifier's process ends with it (exit code 1)"


def test_the_time_of_a_reference_begins_when_its_verifier_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of another verifier than the one before paid for that one's import and was called endless."""
    monkeypatch.setattr(references, "CHILD", (sys.executable, "-c", f"import time\ntime.sleep(3)\n{SLOW}"))
    assert list(unreadable([("exact_match", "good")], 1.0)) == []
    monkeypatch.setattr(references, "START_S", 0.5)
    with pytest.raises(DeadlineError, match=r"waited 0\.5 s for the verifiers to be ready"):
        list(unreadable([("exact_match", "good")], 1.0))
    monkeypatch.setattr(references, "CHILD", (sys.executable, "-c", "raise SystemExit(3)"))
    with pytest.raises(StreamsError, match=r"ended before it was ready \(exit code 3\)"):
        list(unreadable([("exact_match", "good")], 1.0))
