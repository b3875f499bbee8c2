"""The invariant of a verifier of answers, over the forms that real reference columns have."""

import pytest

from consumers.rewards.verifiers import Sample, VerifierError, load
from consumers.rewards.verifiers.answers import stated_answer
from tests.consumers.rewards.answer_pairs import PAIRS


def verdict(text: str, reference: str) -> float:
    return load("math_verify").check(Sample(text, reference))


def test_the_table_is_as_large_as_it_says() -> None:
    assert sum(len(right) + len(wrong) for _, right, wrong in PAIRS) >= 400


@pytest.mark.parametrize(("reference", "right", "wrong"), PAIRS, ids=[reference for reference, _, _ in PAIRS])
def test_the_reference_is_right_and_a_different_answer_is_wrong(
    reference: str, right: tuple[str, ...], wrong: tuple[str, ...]
) -> None:
    own = (stated_answer(reference) or reference).strip("$")
    judged = {answer: verdict(rf"So it is \boxed{{{answer}}}.", reference) for answer in (own, *right, *wrong)}
    assert judged == dict.fromkeys((own, *right), 1.0) | dict.fromkeys(wrong, 0.0)


@pytest.mark.parametrize(
    ("reference", "text", "expected"),
    [
        ("72", "So the answer is 72.", 1.0),
        ("72", "We get 70.\n#### 72", 1.0),
        ("72", "The final answer is $72$. I hope it is correct.", 1.0),
        ("72", "**Answer:** 72", 1.0),
        ("72", "we get 70 and then 72", 1.0),
        ("72", "we get 72 and then 70", 0.0),
        ("7", "The answer is the sum, 3 + 4 = 7", 1.0),
        ("5", r"\boxed{4} no, \boxed{5}", 1.0),
        ("5", r"\boxed{5} no, \boxed{4}", 0.0),
        (r"\frac{1}{2}", "\\boxed{\\frac{1}{2}}\n\nThe answer is 7", 1.0),
        ("2,3", r"\boxed{2} and \boxed{3}", 1.0),
        ("2,3", r"$\boxed{2}$, $\boxed{3}$", 1.0),
        ("A", "The answer is B", 0.0),
        ("B", "I think (A) is wrong.\nAnswer: (B)", 1.0),
        ("Evelyn", "Answer: Evelyn", 1.0),
        ("Evelyn", "It is Carla", 0.0),
        ("5 m", "The answer is 5 m.", 1.0),
        ("5 m", "The answer is 5 s.", 0.0),
        ("5 m", "The length is 5 s", 0.0),
        ("7 m", "The answer is the sum, 3 + 4 = 7 cm", 0.0),
        ("5 g", "#### 5 kg", 0.0),
        ("$18", "Answer: 18 cents", 0.0),
        ("$18", "Answer: $18", 1.0),
        (r"45^\circ", "The answer is 45 rad", 0.0),
        ("0.5", "", 0.0),
        ("0.5", r"\boxed{}", 0.0),
        ("3", r"\boxed{3", 0.0),
    ],
)
def test_an_answer_is_found_where_a_response_states_it(reference: str, text: str, expected: float) -> None:
    assert verdict(text, reference) == expected


@pytest.mark.parametrize("reference", ["", " ", r"\frac{", "{", "???", "$$", "x_1 = ?", r"\text{}"])
def test_a_reference_that_cannot_be_read_has_no_verdict(reference: str) -> None:
    with pytest.raises(VerifierError, match=r"^reference .* is (empty|no formula)"):
        verdict("1", reference)
