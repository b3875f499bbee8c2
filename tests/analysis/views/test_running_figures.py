"""What `up` shows, from the tail of a log, in memory that does not grow."""

import pytest

from analysis.views.durations import in_words
from analysis.views.live_figures import pace
from analysis.views.running_figures import RunningFigures
from schemas import DeadLetter, GroupEvaluated, Ref
from tests.builders import group_requested, member, rollout_scored, step_completed

BEGAN_S = 1_000.0


def dead_letter(error: str, time_s: float = BEGAN_S + 1) -> DeadLetter:
    return DeadLetter(source=Ref("prompts", 0, 0), stage="producer", error=error, data=b"", time_s=time_s)


def fed(*events: object) -> RunningFigures:
    figures = RunningFigures(BEGAN_S)
    for offset, event in enumerate(events):
        figures.add(event, Ref("steps", 0, offset))  # type: ignore[arg-type]
    return figures


def test_steps_an_hour_and_the_time_left_are_of_this_view_and_not_of_a_life_before_it() -> None:
    earlier = [step_completed(step, time_s=10.0 * step) for step in range(1, 9)]
    now = [step_completed(step, time_s=BEGAN_S + 60 * (step - 8)) for step in range(9, 13)]
    shown = fed(*earlier, *now).snapshot(now_s=BEGAN_S + 240, steps=42, lag={})
    assert (shown.step, shown.steps_per_h, shown.left_s) == (12, 60.0, 1800.0)
    assert fed(*earlier).snapshot(now_s=BEGAN_S, steps=42, lag={}).steps_per_h is None


def test_a_step_that_does_not_come_slows_the_pace_down() -> None:
    times = [(1, 0.0), (2, 60.0), (3, 120.0)]
    assert pace(times, 150.0, 0) == (60.0, None)
    steps_per_h, left_s = pace(times, 120.0 + 600.0, 4)
    assert steps_per_h is not None and steps_per_h < 15 and left_s is not None and left_s > 300


def test_a_pause_between_two_lives_of_a_run_does_not_make_it_slow() -> None:
    steps = [(n, 60.0 * n) for n in range(1, 6)] + [(6, 36_000.0), (7, 36_060.0)]
    assert pace(steps, 36_060.0, 10) == (60.0, 180.0)


def test_a_repeated_step_counts_once() -> None:
    assert fed(step_completed(3), step_completed(3), step_completed(2)).snapshot(now_s=0, steps=0, lag={}).step == 3


def test_a_held_back_round_is_shown_once_all_of_its_groups_are_measured() -> None:
    asked = [group_requested(f"h{n}.0", purpose="evaluate", evaluation=10) for n in range(2)]
    ended = [
        GroupEvaluated(
            group_id=f"h{n}.0",
            prompt_id=f"h{n}",
            task="t",
            evaluation=10,
            members=(member(f"h{n}.0.0", passed=float(n)),),
            reward_mean=float(n),
            time_s=BEGAN_S,
        )
        for n in range(2)
    ]
    assert fed(*asked, ended[0]).snapshot(now_s=0, steps=0, lag={}).held_back is None
    assert fed(*asked, *ended).snapshot(now_s=0, steps=0, lag={}).held_back == (10, 0.5)


def test_dead_letters_in_a_row_are_one_sentence_with_their_most_frequent_reason() -> None:
    figures = fed(*[dead_letter("no chat template")] * 190, *[dead_letter("too long")] * 2, dead_letter("old", 1.0))
    assert figures.notes(BEGAN_S) == ["192 dead letters: most of them (190) producer: no chat template"]
    figures.add(dead_letter("no chat template"), Ref("dead-letters", 0, 500))
    assert figures.notes(BEGAN_S + 5) == [], "one sentence in ten seconds"
    said = "1 dead letter, 193 since the start: most of them (191) producer: no chat template"
    assert figures.notes(BEGAN_S + 10) == [said]
    assert figures.notes(BEGAN_S + 20) == []


def test_a_reason_that_is_not_that_of_most_is_an_example() -> None:
    figures = fed(
        dead_letter("too long"), dead_letter("too long"), dead_letter("a"), dead_letter("b"), dead_letter("c")
    )
    assert figures.notes(BEGAN_S) == ["5 dead letters: for example (2 of them) producer: too long"]


def test_memory_does_not_grow_with_the_run() -> None:
    figures = RunningFigures(BEGAN_S)
    for n in range(5_000):
        figures.add(rollout_scored(index=n % 8, passed=1.0, time_s=BEGAN_S + n), Ref("scores", 0, n))
        figures.add(step_completed(n, time_s=BEGAN_S + n), Ref("steps", 0, n))
        figures.add(dead_letter(f"reason {n}"), Ref("dead-letters", 0, n))
        figures.add(group_requested(f"h{n}.0", purpose="evaluate", evaluation=n), Ref("prompts", 0, n))
        figures.snapshot(now_s=BEGAN_S + n, steps=0, lag={})
    sizes = {name: len(value) for name, value in vars(figures).items() if hasattr(value, "__len__")}
    assert max(sizes.values()) <= 512, sizes


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (86.4, "86 s"), (600, "10 min"), (86_387, "24 h"), (5400, "90 min"), (777_600, "9 days")],
)
def test_a_length_of_time_as_a_person_says_it(seconds: float, said: str) -> None:
    assert in_words(seconds) == said
