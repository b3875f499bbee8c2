"""A loop that does not come round is seen from outside of it."""

from streams.runtime.progress import SILENT_S, Progress


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_loop_is_silent_once_it_has_not_come_round_for_a_minute() -> None:
    clock = Clock()
    loop = Progress("reads scores", clock)
    clock.now_s += SILENT_S
    assert loop.silent_s() == 0
    clock.now_s += 1
    assert loop.silent_s() == SILENT_S + 1
    loop.turn()
    assert loop.silent_s() == 0


def test_a_loop_that_rests_on_purpose_is_not_silent_and_begins_anew_afterwards() -> None:
    clock = Clock()
    loop = Progress("reads scores", clock)
    with loop.resting():
        clock.now_s += 10 * SILENT_S
        assert loop.silent_s() == 0
    assert loop.silent_s() == 0
    clock.now_s += SILENT_S + 1
    assert loop.silent_s() > 0
