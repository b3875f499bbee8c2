"""Waits grow to their bound and stay there."""

from streams.runtime.backoff import Backoff


def test_the_delay_doubles_up_to_its_bound() -> None:
    assert [Backoff(0.5, 4.0).delay_s(failures) for failures in range(1, 7)] == [0.5, 1.0, 2.0, 4.0, 4.0, 4.0]


def test_a_failure_that_lasts_for_weeks_is_no_overflow() -> None:
    assert Backoff(0.5, 30.0).delay_s(10_000) == 30.0


def test_a_first_delay_above_the_bound_is_the_bound() -> None:
    assert Backoff(60.0, 1.0).delay_s(1) == 1.0


def test_no_delay_stays_no_delay() -> None:
    assert Backoff(0.0, 30.0).delay_s(7) == 0.0
