"""The figures that the live view shows. Pure: a frozen snapshot from the history, the clock and the lags."""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median_low
from typing import Final

from analysis.history.history import History
from analysis.views.durations import in_words

RATE_WINDOW_S: Final = 10.0
"""Tokens a second are over so long."""

RECENT_ROLLOUTS: Final = 512
"""The pass rate is over so many."""

RECENT_STEPS: Final = 50
"""The pace is that of so many."""

_PAUSED: Final = 10
"""A step that took so many times the median is a pause: the run was down, or stood still."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A run at unix time `time_s`.

    `pass_rate` is over the newest training rollouts; `held_back` is the newest complete held-back round: (step after
    which it was requested, pass rate). `queues` counts rollouts by where they are, `lag` records by topic. `left_s`:
    the time that the remaining steps take at the pace of the newest ones; `services`: what the processes do, in words.
    """

    time_s: float
    step: int
    steps: int
    pass_rate: float | None
    held_back: tuple[int, float] | None
    reward: float | None
    tokens_per_s: float
    staleness: float | None
    groups_ready: int
    groups_dropped: dict[str, int]
    queues: dict[str, int]
    lag: dict[str, int] = field(default_factory=dict)
    dead_letters: int = 0
    steps_per_h: float | None = None
    left_s: float | None = None
    services: str = ""


def snapshot(history: History, *, now_s: float, steps: int, lag: dict[str, int]) -> Snapshot:
    """The figures at `now_s` (unix seconds)."""
    scored = [rollout for rollout in history.rollouts.values() if rollout.scored_s is not None]
    recent = [rollout for rollout in scored if rollout.purpose == "train"][-RECENT_ROLLOUTS:]
    passed = [rollout.passed for rollout in recent if rollout.passed is not None]
    window = [rollout.tokens for rollout in scored if (rollout.scored_s or 0.0) > now_s - RATE_WINDOW_S]
    newest = history.steps[max(history.steps)] if history.steps else None
    times = [(step.step, step.time_s) for _, step in sorted(history.steps.items())[-RECENT_STEPS:]]
    steps_per_h, left_s = pace(times, now_s, steps)
    reasons = Counter(closing.reason for closing in history.closings.values())
    return Snapshot(
        time_s=now_s,
        step=len(history.steps),
        steps=steps,
        pass_rate=sum(passed) / len(passed) if passed else None,
        held_back=_newest_round(history),
        reward=newest.metrics.get("reward") if newest else None,
        tokens_per_s=sum(window) / RATE_WINDOW_S,
        staleness=newest.metrics.get("staleness") if newest else None,
        groups_ready=reasons["ready"],
        groups_dropped={name: n for name, n in sorted(reasons.items()) if name not in ("ready", "evaluated")},
        queues=queues(history),
        lag=lag,
        dead_letters=len(history.dead_letters),
        steps_per_h=steps_per_h,
        left_s=left_s,
    )


def pace(times: Sequence[tuple[int, float]], now_s: float, steps: int) -> tuple[float | None, float | None]:
    """Steps an hour over `times` (step, when it was done), and seconds left to `steps`; None where it cannot be told.

    A step that takes longer than those before it slows the pace down while it lasts; a pause, once it is over, does not
    count: a run that was down for a night is not slower for it.
    """
    spans_s = [
        (later_s - earlier_s) / max(1, later - earlier)
        for (earlier, earlier_s), (later, later_s) in itertools.pairwise(times)
    ]
    if not spans_s:
        return None, None
    usual_s = median_low(spans_s)
    worked_s = [span_s for span_s in spans_s if span_s <= _PAUSED * usual_s] or spans_s
    last, last_s = times[-1]
    mean_s = sum(worked_s) / len(worked_s)
    late_s = max(0.0, now_s - last_s - mean_s)
    a_step_s = mean_s + late_s / len(worked_s)
    if a_step_s <= 0:
        return None, None
    return 3600 / a_step_s, (steps - last) * a_step_s if steps else None


def queues(history: History) -> dict[str, int]:
    """Rollouts by where they are between request and training, by the events read so far."""
    asked = sum(request.samples for request in history.requests.values())
    known = list(history.rollouts.values())
    trained = {step.batch_ref for step in history.steps.values()}
    return {
        "generating": max(0, asked - len(known)),
        "in open groups": sum(rollout.closed_s is None and rollout.scored_s is not None for rollout in known),
        "for a batch": sum(r.ready and r.planned_s is None and r.stale_s is None for r in known),
        "for its step": sum(rollout.batch is not None and rollout.batch not in trained for rollout in known),
    }


def _newest_round(history: History) -> tuple[int, float] | None:
    for evaluation in sorted(history.evaluations, reverse=True):
        if history.closed.issuperset(history.round_groups(evaluation)):
            found = history.evaluated(evaluation)
            return None if found is None else (evaluation, found[0])
    return None


def as_line(now: Snapshot) -> str:
    """One plain line, for logs and pipes."""
    parts = [f"step {now.step}/{now.steps}" if now.steps else f"step {now.step}"]
    if now.pass_rate is not None:
        parts.append(f"pass rate {now.pass_rate:.2f}")
    if now.held_back is not None:
        parts.append(f"held back {now.held_back[1]:.2f} (after step {now.held_back[0]})")
    parts.append(f"{now.tokens_per_s:,.0f} tok/s")
    if now.steps_per_h is not None:
        parts.append(f"{now.steps_per_h:,.0f} steps/h")
    if now.left_s:
        parts.append(f"{in_words(now.left_s)} left")
    if now.staleness is not None:
        parts.append(f"staleness {now.staleness:.1f}")
    parts.append(f"groups ready {now.groups_ready}")
    parts.append("dropped " + (_counts(now.groups_dropped) or "0"))
    if any(now.queues.values()):
        parts.append("waiting " + _counts(now.queues))
    if any(now.lag.values()):
        parts.append("lag " + _counts(now.lag))
    if now.dead_letters:
        parts.append(f"dead letters {now.dead_letters}")
    if now.services:
        parts.append(now.services)
    return " | ".join(parts)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {n}" for name, n in counts.items() if n)
