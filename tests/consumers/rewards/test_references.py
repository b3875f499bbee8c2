"""Every reference is judged before the start; one that does not come to an end costs its time and is named."""

import sys
from typing import Any

import pytest

from consumers.rewards import references
from consumers.rewards.references import unreadable
from tests.consumers.rewards.answer_pairs import PAIRS

SLOW = """
import json, sys, time
for line in sys.stdin:
    name, reference = json.loads(line)
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
