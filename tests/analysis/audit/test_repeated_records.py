"""Steps and weights that a resumed learner writes again: no figure of the run changes."""

import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from analysis.audit.ledger import Ledger
from analysis.history import timeline
from analysis.history.history import History
from analysis.history.latency import hops
from analysis.views.live_figures import snapshot
from analysis.views.summary import Summary, summarise
from schemas import Ref, decode, encode

Records = list[tuple[Ref, bytes]]
Simulate = Callable[..., Any]
LATER_S = 0.01


def summary_of(records: Records) -> Summary:
    history, ledger = History(), Ledger()
    for ref, value in records:
        history.add(decode(value), ref)
        ledger.add(ref, value)
    return summarise(history, ledger.close(), run="demo", seed=7, broker="kafka", restarts={})


def recorded_again(records: Records, seed: int) -> Records:
    """Runs of steps with their weights and applications, written again after they were written first."""
    draw = random.Random(seed)
    repeated: Records = []
    ends: dict[tuple[str, int], int] = {}

    def write(ref: Ref, value: bytes) -> None:
        place = ref.topic, ref.partition
        ends[place] = ends.get(place, -1) + 1
        repeated.append((Ref(*place, ends[place]), value))

    recent: Records = []
    for ref, value in records:
        write(ref, value)
        if ref.topic in ("steps", "weights", "applied"):
            recent.append((ref, value))
            if ref.topic == "applied" and draw.random() < 0.4:
                # The checkpoint is up to three steps old; what it does again takes another time.
                for old, said in recent[-3 * draw.randint(1, 3) :]:
                    event: Any = decode(said)
                    write(old, encode(msgspec.structs.replace(event, time_s=event.time_s + LATER_S)))
    return repeated


def history_of(records: Records) -> History:
    history = History()
    for ref, value in records:
        history.add(decode(value), ref)
    return history


@pytest.mark.parametrize("seed", range(5))
def test_trace_report_and_the_screen_are_as_if_each_step_were_recorded_once(simulated: Simulate, seed: int) -> None:
    records: Records = simulated(steps=6, seed=seed).records
    plain, repeated = history_of(records), history_of(recorded_again(records, seed))
    assert hops(repeated) == hops(plain)
    screens = [snapshot(history, now_s=1e9, steps=6, lag={}) for history in (plain, repeated)]
    assert screens[0] == screens[1] and screens[0].step == 6
    for name in ("reward", "staleness"):
        assert timeline.metric(repeated, name).x.tolist() == timeline.metric(plain, name).x.tolist()
        assert timeline.metric(repeated, name).y.tolist() == timeline.metric(plain, name).y.tolist()


@pytest.mark.parametrize("seed", range(5))
def test_a_resumed_learner_changes_no_figure(simulated: Simulate, seed: int) -> None:
    records: Records = simulated(steps=6, seed=seed).records
    again = recorded_again(records, seed)
    assert len(again) > len(records) and again[: len(records)] != records
    plain, repeated = summary_of(records), summary_of(again)
    assert repeated.wall_s == pytest.approx(plain.wall_s, abs=2 * LATER_S)
    assert msgspec.structs.replace(repeated, wall_s=0) == msgspec.structs.replace(plain, wall_s=0)
