"""An audit of a period: whom it judges, and how old what is in flight is."""

import argparse

import pytest

from analysis.audit.facts import Window
from analysis.audit.ledger import Ledger
from analysis.audit.result import OLDEST_LISTED
from deploy.cli.commands.audit import add_arguments, moment, run
from deploy.errors import ConfigError
from schemas import (
    DeadLetter,
    Ref,
    RolloutDisposed,
    encode,
)
from tests.analysis.audit.audited_run import Records, audited


def test_rollouts_that_retention_took_are_not_missed(records: Records) -> None:
    first = [ref.offset for ref, _ in records if ref.topic == "rollouts" and ref.partition == 0][5]
    kept = [
        (ref, value) for ref, value in records if ref.topic != "rollouts" or ref.partition != 0 or ref.offset >= first
    ]
    assert not audited(kept).clean
    assert audited(kept, log_start={0: first}).clean


def test_a_window_judges_only_its_rollouts_and_is_not_disturbed_by_others(records: Records) -> None:
    offsets = [ref.offset for ref, _ in records if ref.topic == "rollouts" and ref.partition == 0]
    first, end = offsets[3], offsets[-4]
    ledger = Ledger(Window({0: first}, {0: end, 1: 0}))
    for ref, value in records:
        ledger.add(ref, value)
    audit = ledger.close()
    assert audit.clean
    assert audit.produced == end - first


def test_the_oldest_in_flight_are_named_with_their_age(records: Records) -> None:
    ledger = Ledger()
    for ref, value in records:
        if ref.topic == "rollouts":
            ledger.add(ref, value, time_s=1000.0 + ref.offset)
    audit = ledger.close()
    oldest = audit.in_flight_oldest[0]
    newest_s = max(1000.0 + ref.offset for ref, _ in records if ref.topic == "rollouts")
    assert len(audit.in_flight_oldest) == min(OLDEST_LISTED, audit.in_flight)
    assert (oldest.since_s, oldest.age_s, oldest.waits) == (1000.0, newest_s - 1000.0, "to be scored")
    assert [waiting.since_s for waiting in audit.in_flight_oldest] == sorted(w.since_s for w in audit.in_flight_oldest)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 910.0), ("2m", 880.0), ("12.5", 12.5), ("1970-01-01T00:01", 60.0)]
)
def test_times_are_ages_unix_seconds_or_dates(text: str, seconds: float) -> None:
    assert moment(text, now_s=1000.0) == seconds


@pytest.mark.parametrize("text", ["500000h", "9" * 400 + "d", "99999999999999", "1960-01-01"])
def test_a_time_before_1970_or_beyond_what_events_may_say_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is no time; allowed: unix seconds"):
        moment(text, now_s=1000.0)


def test_a_period_that_ends_before_it_begins_judges_nothing_and_is_refused() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with pytest.raises(ConfigError, match="--since is not before --until"):
        run(parser.parse_args(["--since", "1h", "--until", "2h"]))


def test_a_time_that_is_none_is_refused_in_a_sentence() -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="'yesterday' is no time; allowed"):
        moment("yesterday")


def late(ref: Ref, rollout_id: str, at: int = 10_000) -> tuple[Ref, bytes]:
    """What the aggregator records of a rollout of a group that it has forgotten."""
    event = RolloutDisposed(
        rollout_id=rollout_id, group_id="g", rollout=ref, disposition="expired", time_s=1.0
    )  # fmt: skip
    return Ref("groups", ref.partition, at), encode(event)


def test_a_late_word_counts_where_nothing_else_ended_the_rollout(records: Records) -> None:
    """Also said twice, and of a rollout that was trained on, waits for its step, or has a dead letter."""
    trained = audited(records).dispositions["trained"]
    rollouts = [ref for ref, _ in records if ref.topic == "rollouts"]
    late_ones = [late(ref, "r", 10_000 + n) for n, ref in enumerate([*rollouts, *rollouts])]
    audit = audited([*records, *late_ones])
    assert audit.clean
    assert (audit.dispositions["trained"], audit.dispositions["expired"]) == (trained, 0)
    unstepped = [record for record in records if record[0].topic != "steps"]
    audit = audited([*unstepped, *late_ones])
    assert audit.clean
    assert (audit.in_flight_waiting["for its step"], audit.dispositions["expired"]) == (trained, 0)
    alone = [record for record in records if record[0].topic in ("rollouts", "scores")]
    dead = DeadLetter(source=rollouts[0], stage="rewards", error="e", data=b"", time_s=1.0)
    audit = audited([*alone, *late_ones, (Ref("dead-letters", 0, 0), encode(dead))])
    assert audit.clean
    assert audit.dispositions["expired"] == audit.produced == len(rollouts)
