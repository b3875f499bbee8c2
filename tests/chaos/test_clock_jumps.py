"""Clocks that jump, forwards and backwards: every rollout still ends once, and no group stays open indefinitely."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from consumers.groups.aggregate import Aggregator
from consumers.groups.settings import GroupSettings
from producers.dispatcher.admission import Admission
from schemas import GroupReady, Ref, RolloutDisposed, RolloutScored, encode
from streams.stages.processor import ProcessResult
from tests.builders import record_at, rollout_scored

SAMPLES, GROUPS = 3, 4
NOW_S = 1e6
REMEMBER_S = 3600.0

Arrival = tuple[int, int, int, float]
"""Group, index, attempt, and by how many seconds the clock jumps before it is scored."""

jumps = st.one_of(st.just(0.0), st.floats(-1700.0, 1700.0), st.floats(0.0, 5.0))
arrivals = st.lists(st.tuples(st.integers(0, GROUPS - 1), st.integers(0, SAMPLES - 1), st.integers(0, 1), jumps))


def score(group: int, index: int, attempt: int) -> RolloutScored:
    return rollout_scored(
        str(group),
        index,
        attempt=attempt,
        rollout=Ref("rollouts", 0, (group * SAMPLES + index) * 2 + attempt),
        samples=SAMPLES,
        deadline_s=NOW_S + 60.0,
        time_s=NOW_S,
        reward=float(index),
    )


@given(arrivals)
def test_every_rollout_ends_once_whatever_the_clock_does(arrived: list[Arrival]) -> None:
    processor = Aggregator(GroupSettings(remember_s=REMEMBER_S, settle_s=5.0))
    now_s, ends, finished = NOW_S, Counter[Ref](), Counter[Ref]()

    def take(result: ProcessResult) -> None:
        finished.update(result.finished)
        for output in result.outputs:
            event = output.event
            ends.update([event.rollout] if isinstance(event, RolloutDisposed) else [])
            ends.update(member.rollout for member in getattr(event, "members", ()))

    for offset, (group, index, attempt, jump_s) in enumerate(arrived):
        # Jumps add up to less than the memory of closed groups, which is the assumption that it rests on.
        now_s = min(max(now_s + jump_s, NOW_S - 1700.0), NOW_S + 1700.0)
        event = score(group, index, attempt)
        take(processor.on_event(event, record_at("scores", offset, encode(event), time_s=now_s), now_s))
        take(processor.on_time(now_s))
    due_s = processor.next_time_s()
    assert due_s is None or due_s <= NOW_S + 1700.0 + 65.0, "a deadline that a jump pushed out of sight"
    take(processor.on_time(NOW_S + 3000.0))
    assert processor.next_time_s() is None
    assert ends == Counter({event.rollout: 1 for event in {score(g, i, a) for g, i, a, _ in arrived}})
    assert finished == Counter({Ref("scores", 0, offset): 1 for offset in range(len(arrived))})


@given(st.lists(st.tuples(st.sampled_from(["ask", "end", "ready", "time"]), st.integers(0, 5), jumps)))
def test_a_slot_is_free_or_taken_whatever_the_clock_does(did: list[tuple[str, int, float]]) -> None:
    admission, asked, now_s = Admission(window_groups=4, grace_s=30.0), 0, NOW_S
    admission.rebuilt()
    for what, number, jump_s in did:
        now_s += jump_s
        match what:
            case "ask" if admission.free() > 0:
                admission.requested(f"g{asked}", now_s + 60.0)
                asked += 1
            case "end":
                admission.ended(f"g{number}")
            case "ready":
                admission.ready(f"g{number}")
            case "time":
                admission.give_up(now_s)
            case _:
                pass
        assert 0 <= admission.outstanding <= 4
        assert admission.free() + admission.outstanding == 4
    waiting = admission.waiting_for_batch
    admission.give_up(float("1e12"))
    assert admission.outstanding == waiting, "only what is complete waits without a deadline"


def test_a_group_that_is_closed_by_a_jump_is_not_opened_by_its_stragglers() -> None:
    processor = Aggregator(GroupSettings(remember_s=REMEMBER_S, settle_s=5.0))

    def arrive(offset: int, index: int, now_s: float) -> ProcessResult:
        event = score(0, index, 0)
        return processor.on_event(event, record_at("scores", offset, encode(event), time_s=now_s), now_s)

    arrive(0, 0, NOW_S)
    arrive(1, 1, NOW_S)
    (closed,) = processor.on_time(NOW_S + 1000.0).outputs
    assert isinstance(closed.event, GroupReady)
    assert closed.event.partial
    (late,) = arrive(2, 2, NOW_S + 1.0).outputs
    assert isinstance(late.event, RolloutDisposed)
    assert late.event.disposition == "duplicate"
