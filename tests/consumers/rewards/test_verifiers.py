"""The verifiers' verdicts; those of the pool run here in the tests' own process."""

from collections.abc import Mapping
from typing import Any

import pytest

from consumers.rewards.verifiers import NAMES, Sample, VerifierError, is_pooled, load
from consumers.rewards.verifiers.reasoning_gym import answer_of


def verdict(name: str, text: str, reference: str | Mapping[str, Any]) -> float:
    return load(name).check(Sample(text, reference))


SUM = {"answer": "13", "after": "="}


@pytest.mark.parametrize(
    ("text", "reference", "expected"),
    [
        ("3+1=4,4+9=13", SUM, 1.0),
        ("3+1=4,4+9= 13 ", SUM, 1.0),
        ("3+1=4,4+9=12", SUM, 0.0),
        ("13", SUM, 0.0),
        ("", SUM, 0.0),
        ("3+1=13,4", SUM, 0.0),
        (" yes\n", "yes", 1.0),
        ("Yes", "yes", 0.0),
        ("yes", {"answer": "yes"}, 1.0),
    ],
)
def test_exact_match(text: str, reference: str | Mapping[str, Any], expected: float) -> None:
    assert verdict("exact_match", text, reference) == expected


@pytest.mark.parametrize("reference", [{}, {"answer": 13}, {"answer": "13", "after": ""}, {"answer": "1", "after": 2}])
def test_exact_match_without_an_answer_has_no_verdict(reference: dict[str, Any]) -> None:
    with pytest.raises(VerifierError, match="reference has"):
        verdict("exact_match", "13", reference)


def test_an_unknown_verifier_is_named() -> None:
    with pytest.raises(VerifierError, match="verifier 'oracle' is not one of exact_match, math_verify, reasoning_gym"):
        load("oracle")


def test_every_name_has_a_module() -> None:
    assert {name: load(name).VERSION for name in NAMES} == dict.fromkeys(NAMES, "1") | {"math_verify": "2"}
    assert [name for name in NAMES if is_pooled(name)] == ["math_verify", "reasoning_gym"]


def test_answers_are_taken_from_the_last_answer_element() -> None:
    assert answer_of("<answer>1</answer> no, <answer> 2 </answer> done") == "2"
    assert answer_of(" 7 ") == "7"
    assert answer_of("<answer>8") == "8"
