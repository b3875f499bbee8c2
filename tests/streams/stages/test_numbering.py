"""The writer's own numbers are found among others: the longest run."""

from hypothesis import given
from hypothesis import strategies as st

from streams.stages.numbering import Numbering


def numbering(*numbers: int, kept: int = 2) -> Numbering[int]:
    found: Numbering[int] = Numbering(kept)
    for number in numbers:
        found.add(number, number)
    return found


def test_nothing_begins_at_0() -> None:
    assert (numbering().next, numbering().items) == (0, ())


def test_it_goes_on_from_where_retention_cut_the_log() -> None:
    found = numbering(57, 58, 59)
    assert (found.next, found.items) == (60, (58, 59))


def test_a_number_recorded_again_changes_nothing() -> None:
    assert numbering(0, 1, 2, 1, 2).next == 3
    assert numbering(0, 1, 2, 2, 3).next == 4


@given(
    first=st.integers(0, 1000),
    count=st.integers(3, 200),
    others=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 10**9)), max_size=300),
)
def test_strangers_move_nothing(first: int, count: int, others: list[tuple[int, int]]) -> None:
    """However many there are, and wherever: strangers that are not consecutive themselves."""
    own = list(range(first, first + count))
    spread = {3 * number + 2 * (first + count) for _, number in others}
    numbers = list(own)
    for (place, _), number in zip(others, sorted(spread, reverse=True), strict=False):
        numbers.insert(place % (len(numbers) + 1), number)
    found = numbering(*numbers)
    assert found.next == first + count
    assert found.items == tuple(own[-2:])
