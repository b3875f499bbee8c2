"""The figures that the live view shows. Pure: a frozen snapshot from the history, the clock and the lags."""

from collections import Counter
from dataclasses import dataclass, field

from analysis.history.history import History

_RATE_WINDOW_S = 10.0
_RECENT_ROLLOUTS = 512


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A run at unix time `time_s`.

    `pass_rate` is over the newest training rollouts; `held_back` is the newest complete held-back round: (step after
    which it was requested, pass rate). `queues` counts rollouts by where they are, `lag` records by topic.
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


def snapshot(history: History, *, now_s: float, steps: int, lag: dict[str, int]) -> Snapshot:
    """The figures at `now_s` (unix seconds)."""
    scored = [rollout for rollout in history.rollouts.values() if rollout.scored_s is not None]
    recent = [rollout for rollout in scored if rollout.purpose == "train"][-_RECENT_ROLLOUTS:]
    passed = [rollout.passed for rollout in recent if rollout.passed is not None]
    window = [rollout.tokens for rollout in scored if (rollout.scored_s or 0.0) > now_s - _RATE_WINDOW_S]
    newest = history.steps[max(history.steps)] if history.steps else None
    reasons = Counter(closing.reason for closing in history.closings.values())
    return Snapshot(
        time_s=now_s,
        step=len(history.steps),
        steps=steps,
        pass_rate=sum(passed) / len(passed) if passed else None,
        held_back=_newest_round(history),
        reward=newest.metrics.get("reward") if newest else None,
        tokens_per_s=sum(window) / _RATE_WINDOW_S,
        staleness=newest.metrics.get("staleness") if newest else None,
        groups_ready=reasons["ready"],
        groups_dropped={name: n for name, n in sorted(reasons.items()) if name not in ("ready", "evaluated")},
        queues=queues(history),
        lag=lag,
        dead_letters=len(history.dead_letters),
    )


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
    if now.staleness is not None:
        parts.append(f"staleness {now.staleness:.1f}")
    parts.append(f"groups ready {now.groups_ready}")
    parts.append("dropped " + (_counts(now.groups_dropped) or "0"))
    parts.append("waiting " + (_counts(now.queues) or "0"))
    if any(now.lag.values()):
        parts.append("lag " + _counts(now.lag))
    if now.dead_letters:
        parts.append(f"dead letters {now.dead_letters}")
    return " | ".join(parts)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {n}" for name, n in counts.items() if n)
