"""Every rollout of a run has one disposition, and what has none or two is found."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas import (
    BatchPlanned,
    DeadLetter,
    DeadLetterPurged,
    DeadLetterReplayed,
    GroupDropped,
    GroupEvaluated,
    GroupReady,
    Member,
    Ref,
    Rejected,
    RolloutScored,
    StepCompleted,
    decode,
    encode,
)
from schemas.events.earlier_forms import AnyDeadLetter
from tests.analysis.audit.audited_run import Records, Simulate, audited, replaced
from tests.builders import group_dropped, rollout_disposed


def test_a_finished_run_accounts_for_every_rollout(records: Records) -> None:
    audit = audited(records)
    assert audit.clean
    assert audit.in_flight == 0
    assert audit.produced == sum(ref.topic == "rollouts" for ref, _ in records)
    assert audit.dispositions["trained"] == 3 * 4 * 4
    assert audit.dispositions["evaluated"] == 3 * 6 * 2
    assert sum(audit.dispositions.values()) == audit.produced


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_any_cut_of_the_log_accounts_for_every_rollout(simulated: Simulate, data: st.DataObject) -> None:
    """A log that ends anywhere is a run that is still going: nothing is unaccounted for, and the sum holds."""
    records = simulated(steps=data.draw(st.integers(1, 3)), seed=data.draw(st.integers(0, 3))).records
    cut = records[: data.draw(st.integers(0, len(records)))]
    audit = audited(data.draw(st.permutations(cut)) if len(cut) < 60 else list(reversed(cut)))
    assert audit.clean
    assert audit.produced == sum(audit.dispositions.values()) + audit.in_flight
    assert audit.in_flight == sum(audit.in_flight_waiting.values())


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_a_missing_rollout_is_found(simulated: Simulate, data: st.DataObject) -> None:
    records = simulated(steps=2).records
    lost = data.draw(st.sampled_from([ref for ref, _ in records if ref.topic == "rollouts"]))
    audit = audited([(ref, value) for ref, value in records if ref != lost])
    assert [finding.ref for finding in audit.findings] == [lost]
    assert audit.unaccounted == 1


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_a_closing_recorded_twice_is_found(simulated: Simulate, data: st.DataObject) -> None:
    records = simulated(steps=2).records
    ref, value = data.draw(st.sampled_from([record for record in records if record[0].topic == "groups"]))
    audit = audited([*records, (Ref("groups", ref.partition, 10_000), value)])
    closed = decode(value)
    assert isinstance(closed, GroupReady | GroupDropped | GroupEvaluated)
    assert audit.duplicated == len(closed.members)
    assert not audit.clean


def test_what_a_rollout_waits_for_is_named(records: Records) -> None:
    topics = ["rollouts", "scores", "groups", "batches", "steps"]
    waits = []
    for n in range(1, len(topics)):
        known = audited([(ref, value) for ref, value in records if ref.topic in topics[:n]]).in_flight_waiting
        waits.append({name for name, count in known.items() if count})
    assert waits == [{"to be scored"}, {"for its group"}, {"for a batch"}, {"for its step"}]


def test_rejected_rollouts_end_as_invalid(records: Records) -> None:
    def reject(step: StepCompleted) -> StepCompleted:
        planned = next(decode(value) for ref, value in records if ref == step.batch_ref)
        assert isinstance(planned, BatchPlanned)
        sequence = planned.sequences[0]
        refused = Rejected(rollout_id=sequence.rollout_id, rollout=sequence.rollout, reason="log-probs are not finite")
        return msgspec.structs.replace(step, rejected=(refused,))

    audit = audited(replaced(records, "steps", reject))
    assert audit.clean
    assert audit.dispositions["invalid"] == 1


def test_two_steps_on_one_batch_train_its_rollouts_twice(records: Records) -> None:
    _ref, value = next(record for record in records if record[0].topic == "steps")
    again = msgspec.structs.replace(decode(value), step=99)
    audit = audited([*records, (Ref("steps", 0, 99), encode(again))])
    assert audit.trained_twice == 16
    assert len(audit.trained_twice_ids) == 16
    assert not audit.clean


def test_a_step_recorded_again_after_a_crash_changes_nothing(records: Records) -> None:
    _ref, value = next(record for record in records if record[0].topic == "steps")
    assert audited([*records, (Ref("steps", 0, 99), value)]) == audited(records)


def test_a_trained_rollout_that_ends_otherwise_too_is_found(records: Records) -> None:
    ready = next(event for _, value in records if isinstance(event := decode(value), GroupReady))
    member = ready.members[0]
    end = rollout_disposed(member.rollout_id, member.rollout, "duplicate")
    audit = audited([*records, (Ref("groups", 0, 10_000), encode(end))])
    assert [(finding.rollout, finding.what) for finding in audit.findings] == [
        (member.rollout_id, "ends as trained and as duplicate")
    ]


def test_a_stale_group_restates_the_ends_it_had(records: Records) -> None:
    """The batcher drops a whole ready group; members that were invalid already stay that, and nothing contradicts."""
    upstream = [(ref, value) for ref, value in records if ref.topic in ("rollouts", "scores", "groups")]

    def spoil(event: Any) -> Any | None:
        if not isinstance(event, GroupReady):
            return None
        first = msgspec.structs.replace(event.members[0], disposition="invalid")
        return msgspec.structs.replace(event, members=(first, *event.members[1:]))

    spoiled = replaced(upstream, "groups", spoil)
    ready = next(
        event for _, value in spoiled if isinstance(event := decode(value), GroupReady) and event.members[0].disposition
    )
    stale = group_dropped(ready.group_id, *ready.members, prompt_id="p", reason="stale")
    audit = audited([*spoiled, (Ref("batches", 0, 0), encode(stale))])
    assert audit.clean
    assert audit.dispositions["invalid"] == 1
    assert audit.dispositions["stale"] == 3


@pytest.mark.parametrize("topic", ["rollouts", "scores"])
def test_dead_letters_end_their_rollouts(records: Records, topic: str) -> None:
    upstream = [(ref, value) for ref, value in records if ref.topic in ("rollouts", topic)]
    source, data = next(record for record in upstream if record[0].topic == topic)
    dead = DeadLetter(source=source, stage="groups", error="no", data=data, time_s=0.0)
    audit = audited([*upstream, (Ref("dead-letters", 0, 0), encode(dead))])
    assert audit.clean
    assert audit.dispositions["dead_letter"] == 1


def test_a_record_that_does_not_decode_is_produced_all_the_same(records: Records) -> None:
    bad = Ref("rollouts", 0, 10_000)
    assert audited([*records, (bad, b"\xc1")]).in_flight == 1
    dead = DeadLetter(source=bad, stage="rewards", error="no event", data=b"\xc1", time_s=0.0)
    audit = audited([*records, (bad, b"\xc1"), (Ref("dead-letters", 0, 0), encode(dead))])
    assert audit.clean
    assert audit.dispositions["dead_letter"] == 1


Note = DeadLetterReplayed | DeadLetterPurged | AnyDeadLetter


def replay_note(dead: DeadLetter, replayed: Ref, earlier: bool) -> Note:
    """The note that the record of `dead` was put back, also as an earlier version wrote it."""
    if earlier:
        return AnyDeadLetter(
            source=dead.source, stage=dead.stage, error=dead.error, data=b"", key=dead.key, time_s=1.0,
            replayed=replayed,
        )  # fmt: skip
    return DeadLetterReplayed(source=dead.source, stage=dead.stage, replayed=replayed, time_s=1.0)


def purge_note(dead: DeadLetter, ends: tuple[Ref, ...], replayed: Ref | None, earlier: bool) -> Note:
    """The note that `dead` was purged, also as an earlier version wrote it."""
    if earlier:
        return AnyDeadLetter(
            source=dead.source, stage=dead.stage, error=dead.error, data=b"", key=dead.key, time_s=dead.time_s,
            replayed=replayed, purged=True, ends=ends,
        )  # fmt: skip
    return DeadLetterPurged(
        source=dead.source, stage=dead.stage, error=dead.error, refused_s=dead.time_s, time_s=1.0, key=dead.key,
        ends=ends, replayed=replayed,
    )  # fmt: skip


@pytest.mark.parametrize(("replays_earlier", "purges_earlier"), [(0, 0), (1, 1), (1, 0), (0, 1)])
def test_a_dead_letter_excuses_the_rollout_that_it_names_and_no_other_of_its_group(
    records: Records, replays_earlier: int, purges_earlier: int
) -> None:
    """A score was refused, and another of the same group was taken and lost. Notes of both forms, also mixed."""
    upstream = [record for record in records if record[0].topic in ("rollouts", "scores")]
    (place, value), event = next((record, decode(record[1])) for record in upstream if record[0].topic == "scores")
    assert isinstance(event, RolloutScored)
    mates = [ref for ref, data in upstream if ref.topic == "scores" and in_group(data, event.group_id)]
    key, dead_letters = event.group_id.encode(), [Ref("dead-letters", 0, offset) for offset in range(3)]

    def verdict(*entries: DeadLetter | Note, done: Callable[[Ref], bool] = mates.__contains__) -> tuple[int, int]:
        said = [(ref, msgspec.msgpack.encode(entry)) for ref, entry in zip(dead_letters, entries, strict=False)]
        audit = audited([*upstream, *said], finished=lambda stage, ref: stage == "groups" and done(ref))
        return audit.dispositions["dead_letter"], audit.unaccounted

    named = DeadLetter(source=place, stage="groups", error="no", data=value, key=key, time_s=0.0)
    unread = msgspec.structs.replace(named, data=b"\xc1")
    purged = purge_note(named, (event.rollout,), None, bool(purges_earlier))
    assert verdict(named) == verdict(named, purged) == verdict(purged) == (1, len(mates) - 1)
    assert verdict(unread) == (len(mates), 0), "it may have been any of them"

    again = Ref("scores", place.partition, 10_000)
    for dead, before in ((named, (1, len(mates) - 1)), (unread, (len(mates), 0))):
        back = replay_note(dead, again, bool(replays_earlier))
        assert verdict(dead, back) == before, "which groups has not come to yet"
        assert verdict(dead, back, done=lambda ref: ref in (*mates, again)) == (0, len(mates))
        gone = purge_note(dead, (), again, bool(purges_earlier))
        for left in ((dead, back, gone), (dead, gone), (gone,)):
            expected = before if left[0] is dead else (0, len(mates))
            assert verdict(*left) == expected, "which its stage has not come to yet"
            assert verdict(*left, done=lambda ref: ref in (*mates, again)) == (0, len(mates))
        second = msgspec.structs.replace(dead, source=again)
        assert verdict(dead, back, second, done=lambda ref: ref in (*mates, again)) == before


def in_group(data: bytes, group: str) -> bool:
    event = decode(data)
    return isinstance(event, RolloutScored) and event.group_id == group


@pytest.mark.parametrize(
    ("present", "stage"),
    [
        (("rollouts",), "rewards"),
        (("rollouts", "scores"), "groups"),
        (("rollouts", "scores", "groups"), "batches"),
    ],
)
def test_what_a_stage_finished_without_a_word_is_lost(records: Records, present: tuple[str, ...], stage: str) -> None:
    upstream = [(ref, value) for ref, value in records if ref.topic in present]
    waiting = audited(upstream, finished=lambda name, ref: False)
    assert waiting.clean
    assert waiting.in_flight > 0
    lost = audited(upstream, finished=lambda name, ref: name == stage)
    assert lost.unaccounted == waiting.in_flight
    assert stage in lost.findings[0].what


def test_a_dead_letter_that_was_put_back_yields_to_what_became_of_it(records: Records) -> None:
    ref, value = next(record for record in records if record[0].topic == "scores")
    dead = DeadLetter(source=ref, stage="groups", error="no", data=value, time_s=0.0)
    audit = audited([*records, (Ref("dead-letters", 0, 0), encode(dead))])
    assert audit.clean
    assert audit.dispositions["dead_letter"] == 0


def test_what_the_learner_refuses_ends_in_its_step_and_not_in_its_dead_letter(records: Records) -> None:
    in_flight = [(ref, value) for ref, value in records if ref.topic != "steps"]
    source = next(ref for ref, _ in records if ref.topic == "rollouts")
    dead = DeadLetter(source=source, stage="learner", error="not finite", data=b"", time_s=0.0)
    assert audited([*in_flight, (Ref("dead-letters", 0, 0), encode(dead))]) == audited(in_flight)


def test_a_batch_that_the_learner_passed_over_plans_nothing(records: Records) -> None:
    source = Ref("batches", 0, 10_000)
    planned = next(event for _, value in records if isinstance(event := decode(value), BatchPlanned))
    forged = encode(msgspec.structs.replace(planned, batch=4000))
    dead = DeadLetter(source=source, stage="learner", error="not the batcher's", data=forged, time_s=0.0)
    assert not audited([*records, (source, forged)]).clean
    reported = (Ref("dead-letters", 0, 0), encode(dead))
    assert audited([reported, *records, (source, forged)]) == audited(records)


def test_a_damaged_reference_is_reported_and_takes_no_memory(records: Records) -> None:
    value = next(value for ref, value in records if ref.topic == "scores")
    wrong = Ref("rollouts", 0, 1 << 40)
    damaged = encode(msgspec.structs.replace(decode(value), rollout=wrong))
    audit = audited([*records, (Ref("scores", 0, 10_000), damaged)])
    assert [finding.ref for finding in audit.findings] == [wrong]


def test_an_event_on_a_topic_it_does_not_belong_to_ends_nothing(records: Records) -> None:
    value = next(value for ref, value in records if ref.topic == "groups")
    assert audited([*records, (Ref("scores", 0, 10_000), value)]) == audited(records)


def test_a_planned_rollout_that_was_also_dropped_is_duplicated(records: Records) -> None:
    planned = next(event for _, value in records if isinstance(event := decode(value), BatchPlanned))
    sequence = planned.sequences[0]
    upstream = [(ref, value) for ref, value in records if ref.topic != "steps"]
    member = Member(rollout_id=sequence.rollout_id, rollout=sequence.rollout, disposition="stale")
    dropped = group_dropped("g", member, prompt_id="p", reason="stale")
    audit = audited([*upstream, (Ref("batches", 0, 10_000), encode(dropped))])
    assert audit.duplicated == 1
    assert "is planned at" in audit.findings[0].what
