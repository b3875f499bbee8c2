"""How a group ends, for every mixture of members."""

from typing import Any

import pytest

from consumers.groups.close import close_group
from consumers.groups.settings import GroupSettings
from schemas import GroupDropped, GroupEvaluated, GroupReady, RolloutScored
from tests.builders import rollout_scored


def score(index: int, reward: float | None, samples: int = 4, **fields: Any) -> RolloutScored:
    """A member; reward None: its verifier came to no verdict."""
    return rollout_scored(
        "p.0",
        index,
        samples=samples,
        deadline_s=100.0,
        valid=reward is not None,
        reward=reward or 0.0,
        passed=reward,
        time_s=1.0,
        **fields,
    )


def group(*rewards: float | None, samples: int | None = None, **fields: Any) -> list[RolloutScored]:
    return [score(index, reward, samples or len(rewards), **fields) for index, reward in enumerate(rewards)]


def test_a_group_with_variance_is_ready() -> None:
    event = close_group(group(1.0, 0.0, None, 1.0, oldest_version=3, prompt_tokens=5), GroupSettings(), 50.0)
    assert isinstance(event, GroupReady)
    assert [member.disposition for member in event.members] == [None, None, "invalid", None]
    assert event.members[2].advantage == 0.0
    assert event.members[0].advantage == pytest.approx(0.7071, abs=1e-3)
    assert not event.partial
    assert event.pass_rate == pytest.approx(2 / 3)
    assert event.reward_mean == pytest.approx(2 / 3)
    assert event.reward_std == pytest.approx(0.4714, abs=1e-3)
    assert (event.members[0].oldest_version, event.members[0].prompt_tokens) == (3, 5)


def test_members_are_ordered_by_index() -> None:
    event = close_group(list(reversed(group(1.0, 0.0, 0.5))), GroupSettings(), 50.0)
    assert [member.rollout_id for member in event.members] == ["p.0.0", "p.0.1", "p.0.2"]


@pytest.mark.parametrize(
    ("rewards", "samples", "reason", "dispositions"),
    [
        ((1.0, 1.0), 2, "zero_variance", ["zero_variance"] * 2),
        ((1.0, None, 1.0), 3, "zero_variance", ["zero_variance", "invalid", "zero_variance"]),
        ((1.0, None), 2, "zero_variance", ["zero_variance", "invalid"]),
        ((None, None), 2, "invalid", ["invalid"] * 2),
        ((0.5,), 1, "zero_variance", ["zero_variance"]),
        ((None,), 4, "invalid", ["invalid"]),
        ((1.0,), 4, "expired", ["expired"]),
        ((1.0, 0.0), 4, "expired", ["expired"] * 2),
        ((1.0, 0.0, None), 4, "expired", ["expired", "expired", "invalid"]),
        ((1.0, 1.0, 1.0), 4, "zero_variance", ["zero_variance"] * 3),
    ],
)
def test_a_group_without_variance_or_members_is_dropped(
    rewards: tuple[float | None, ...], samples: int, reason: str, dispositions: list[str]
) -> None:
    event = close_group(group(*rewards, samples=samples), GroupSettings(min_samples=3), 50.0)
    assert isinstance(event, GroupDropped)
    assert event.reason == reason
    assert [member.disposition for member in event.members] == dispositions


@pytest.mark.parametrize(
    ("rewards", "samples", "unanimous"),
    [((1.0, 1.0), 2, "correct"), ((0.0, 0.0, None), 3, "wrong"), ((1.0, 1.0), 4, "correct")],
)
def test_a_unanimous_group_is_kept_where_it_is_to_be_shaped(
    rewards: tuple[float | None, ...], samples: int, unanimous: str
) -> None:
    event = close_group(group(*rewards, samples=samples), GroupSettings(zero_variance="shape"), 50.0)
    assert isinstance(event, GroupReady)
    assert event.unanimous == unanimous
    assert [member.disposition for member in event.members] == [None if r is not None else "invalid" for r in rewards]
    assert {member.advantage for member in event.members} == {0.0}


@pytest.mark.parametrize(
    ("rewards", "samples", "reason"),
    [
        ((0.5, 0.5), 2, "zero_variance"),
        ((1.0,), 1, "zero_variance"),
        ((1.0, None), 2, "zero_variance"),
        ((None, None), 2, "invalid"),
        ((1.0,), 4, "expired"),
    ],
)
def test_what_is_not_unanimous_is_dropped_even_then(
    rewards: tuple[float | None, ...], samples: int, reason: str
) -> None:
    event = close_group(group(*rewards, samples=samples), GroupSettings(zero_variance="shape"), 50.0)
    assert isinstance(event, GroupDropped)
    assert event.reason == reason


def test_a_group_with_variance_is_not_unanimous() -> None:
    event = close_group(group(1.0, 0.0), GroupSettings(zero_variance="shape"), 50.0)
    assert isinstance(event, GroupReady)
    assert event.unanimous is None


def test_a_partial_group_with_enough_members_is_ready() -> None:
    event = close_group(group(1.0, 0.0, samples=4), GroupSettings(min_samples=2), 50.0)
    assert isinstance(event, GroupReady)
    assert event.partial


def test_an_evaluated_group_is_never_trained_on() -> None:
    event = close_group(group(1.0, None, 0.0, purpose="evaluate", evaluation=7), GroupSettings(), 50.0)
    assert isinstance(event, GroupEvaluated)
    assert (event.evaluation, event.pass_rate, event.reward_mean) == (7, 0.5, 0.5)
    assert [member.disposition for member in event.members] == ["evaluated", "invalid", "evaluated"]
