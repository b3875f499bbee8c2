"""Series over a run's steps and time, from its history: what the report draws. Pure."""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from analysis.history.history import History, RolloutFacts

Floats = npt.NDArray[np.float64]
Stay = tuple[float | None, float | None]

PLACES: Final = ("generating", "scoring", "in an open group", "for a batch", "for its step")
"""Where a rollout can be between its request and the step that trained it."""


@dataclass(frozen=True)
class Series:
    """Points (x, y) of one line."""

    x: Floats
    y: Floats


def metric(history: History, name: str) -> Series:
    """A metric of the learner by step, where it was reported."""
    reported = [(number, step.metrics[name]) for number, step in sorted(history.steps.items()) if name in step.metrics]
    return _series(reported)


def held_back(history: History) -> Series:
    """The pass rate of each held-back round by the step after which it was requested."""
    rounds = ((evaluation, history.evaluated(evaluation)) for evaluation in sorted(history.evaluations))
    return _series([(evaluation, found[0]) for evaluation, found in rounds if found is not None])


def training_pass_rate(history: History) -> Series:
    """Mean `passed` of the training rollouts scored while each step was awaited (all of them, dropped ones too)."""
    scored = [
        (rollout.scored_s, rollout.passed)
        for rollout in history.rollouts.values()
        if rollout.purpose == "train" and rollout.scored_s is not None and rollout.passed is not None
    ]
    return _by_step(history, scored)


def dropped_share(history: History, reason: str) -> Series:
    """Share of the training groups closed while each step was awaited that were dropped for `reason`."""
    closed = [
        (closing.time_s, float(closing.reason == reason))
        for closing in history.closings.values()
        if closing.reason != "evaluated"
    ]
    return _by_step(history, closed)


def waiting(history: History, points: int = 240) -> tuple[Floats, dict[str, Floats]]:
    """Rollouts by where they are, at `points` times: (seconds since the first request, place → count)."""
    paths = [_stays(history, rollout) for rollout in history.rollouts.values()]
    times = [time for path in paths for stay in path for time in stay if time is not None]
    if not times:
        return np.zeros(0), {}
    grid = np.linspace(min(times), max(times), points)
    places = {name: _present(grid, [path[index] for path in paths]) for index, name in enumerate(PLACES)}
    return grid - grid[0], places


def generated_per_s(history: History, window_s: float = 5.0) -> Series:
    """Response tokens completed a second, over windows, by seconds since the first request."""
    done = [(r.completed_s, r.tokens) for r in history.rollouts.values() if r.completed_s is not None]
    asked = [r.requested_s for r in history.rollouts.values() if r.requested_s is not None]
    if not done or not asked:
        return _series([])
    begin, end = min(asked), max(time for time, _ in done)
    edges = np.arange(begin, end + window_s, window_s)
    tokens, _ = np.histogram([t for t, _ in done], bins=edges, weights=[float(n) for _, n in done])
    return Series((edges[:-1] + edges[1:]) / 2 - begin, tokens / window_s)


def _stays(history: History, rollout: RolloutFacts) -> list[Stay]:
    """When it entered each of PLACES and when it left (unix seconds); None and None where it never was there."""
    step = history.step_of(rollout.batch) if rollout.batch is not None else None
    planned_or_stale_s = rollout.planned_s if rollout.planned_s is not None else rollout.stale_s
    return [
        (rollout.requested_s, rollout.completed_s),
        (rollout.completed_s, rollout.scored_s),
        (rollout.scored_s, rollout.closed_s),
        # Rollouts of a group that did not become ready never wait for a batch.
        (rollout.closed_s if rollout.ready else None, planned_or_stale_s if rollout.ready else None),
        (rollout.planned_s, step.time_s if step is not None else None),
    ]


def _present(grid: Floats, stays: Sequence[Stay]) -> Floats:
    """How many are present at each time of the grid."""
    entered = [begin for begin, _ in stays if begin is not None]
    left = [end for begin, end in stays if begin is not None and end is not None]
    return (_count(entered, grid) - _count(left, grid)).clip(min=0)


def _count(times: list[float], grid: Floats) -> Floats:
    return np.searchsorted(np.sort(np.asarray(times, dtype=np.float64)), grid, side="right").astype(np.float64)


def _by_step(history: History, timed: Sequence[tuple[float, float]]) -> Series:
    """Means of timed values between the ends of neighbouring steps."""
    numbers = sorted(history.steps)
    ends = [history.steps[number].time_s for number in numbers]
    found: list[list[float]] = [[] for _ in numbers]
    for time, value in timed:
        index = bisect.bisect_left(ends, time)
        if index < len(numbers):
            found[index].append(value)
    return _series([(n, sum(v) / len(v)) for n, v in zip(numbers, found, strict=True) if v])


def _series(points: Sequence[tuple[float, float]]) -> Series:
    return Series(np.array([x for x, _ in points], dtype=float), np.array([y for _, y in points], dtype=float))
