"""The recorded load of `benchmarks.delivery`: what it is said to be."""

from collections import Counter

import msgspec
import numpy as np
import pytest

from benchmarks.delivery import recording
from benchmarks.delivery.played import Played, routes
from benchmarks.delivery.shape import Shape
from schemas import decode, encode

SHAPE = Shape(rollouts=16_384, model="", equals=2, answer=3, wrong=4, eos=1, answer_text="1")


def test_the_recording_is_small_whole_and_of_an_engine() -> None:
    recorded = recording.read()
    assert recording.PATH.stat().st_size < 200_000
    assert set(Counter(recorded.group.numpy().tolist()).values()) == {recorded.samples}
    assert np.all(np.diff(recorded.arrival_ms.numpy().astype(int)) >= 0)
    assert len(set(recorded.response_tokens.numpy().tolist())) > 10, "lengths differ"
    first = recorded.group.numpy()[:100].tolist()
    assert first != sorted(first), "groups interleave"


def test_it_is_played_in_whole_groups_at_the_wanted_size_and_rate() -> None:
    due = list(Played(msgspec.structs.replace(SHAPE, rate=3000.0)))
    times_s = [due_s for due_s, _ in due]
    assert len(due) == SHAPE.rollouts and times_s == sorted(times_s)
    assert times_s[-1] == pytest.approx(SHAPE.rollouts / 3000, rel=0.05)
    assert set(Counter(rollout.group_id for _, rollout in due).values()) == {SHAPE.samples}
    events = [rollout.event(1.0) for _, rollout in due[:8192]]
    assert len({event.rollout_id for event in events}) == len(events)
    encoded = [encode(event) for event in events]
    assert np.mean([len(data) for data in encoded]) == pytest.approx(SHAPE.record_bytes, rel=0.03)
    assert decode(encoded[0]) == events[0]
    right = [event.response_ids.numpy()[-2] == SHAPE.answer for event in events]
    assert np.mean(right) == 0.5


def test_no_token_has_one_expert_twice() -> None:
    found = np.sort(routes(100, 60, 8), axis=-1)
    assert (found[..., 1:] != found[..., :-1]).all()
