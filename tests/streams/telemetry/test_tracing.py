"""Which spans are recorded: a trace as a whole or not at all, which `traceparent` passes on."""

import re

import pytest

from streams.record import Record
from streams.telemetry import names, tracing

UNRECORDED = b"00-" + b"1" * 32 + b"-" + b"2" * 16 + b"-00"
RECORDED = b"00-" + b"3" * 32 + b"-" + b"4" * 16 + b"-01"


def record(header: bytes | None) -> Record:
    return Record("scores", 0, 0, None, b"", {} if header is None else {names.TRACEPARENT: header}, 0.0)


@pytest.fixture
def spent(monkeypatch: pytest.MonkeyPatch) -> None:
    """No trace may begin."""
    monkeypatch.setattr(tracing, "_budget", tracing._Budget(0.0))


def test_what_follows_an_unrecorded_trace_is_not_recorded_and_passes_it_on() -> None:
    with tracing.span("a", cause=record(UNRECORDED)) as span:
        assert not span.is_recording()
        assert tracing.traceparent() == UNRECORDED
        with tracing.span("inside"):
            assert tracing.traceparent() == UNRECORDED
    assert tracing.traceparent() is None


def test_a_recorded_cause_counts_inside_an_unrecorded_span() -> None:
    with tracing.span("a", cause=record(UNRECORDED)), tracing.span("b", cause=record(RECORDED)):
        assert tracing.traceparent() != UNRECORDED
    with tracing.span("a", links=[record(UNRECORDED), record(RECORDED)]):
        assert tracing.traceparent() != UNRECORDED
    with tracing.span("a", links=[record(UNRECORDED)]):
        assert tracing.traceparent() == UNRECORDED


def test_a_trace_beyond_the_budget_is_marked_unrecorded(spent: None) -> None:
    with tracing.span("a", cause=record(None)):
        header = tracing.traceparent()
    assert header is not None
    assert re.fullmatch(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-00", header)


def test_the_budget_is_a_number_a_second() -> None:
    budget = tracing._Budget(5.0)
    assert [budget.take() for _ in range(7)] == [True] * 5 + [False] * 2
