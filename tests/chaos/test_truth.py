"""Trained again from the log, the weights are the same, or it is said where they are not."""

import pytest

from tests.chaos.truth import differences

SAME: dict[int, list[tuple[str, ...]]] = {1: [("a",), ("a",)], 2: [("b", "c"), ("b", "c"), ("b", "c")]}
LAST = ("step-2", ("d", "e"))


def test_the_same_bits_are_no_difference() -> None:
    assert list(differences(2, LAST, LAST, SAME)) == []


@pytest.mark.parametrize(
    ("after", "published", "said"),
    [
        (("step-2", ("d", "f")), SAME, "the last checkpoint was"),
        (("step-1", ("d", "e")), SAME, "the last checkpoint was"),
        (LAST, SAME | {1: [("a",), ("x",)]}, "weights 1 have 2 different contents"),
        (LAST, SAME | {2: [("b", "c")]}, "weights 2 were published 1 times"),
        (LAST, {1: SAME[1]}, "weights 2 were published 0 times"),
    ],
)
def test_another_bit_is_one(
    after: tuple[str, tuple[str, ...]], published: dict[int, list[tuple[str, ...]]], said: str
) -> None:
    (found,) = differences(2, LAST, after, published)
    assert found.startswith(said)
