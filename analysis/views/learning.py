"""Whether a run learns, from a few records of its log: `status` must answer at once however long the run is."""

from collections.abc import Iterable

import msgspec

from analysis.history.run_log import RunLog
from analysis.views.durations import in_words
from analysis.views.live_figures import pace
from schemas import Event, GroupEvaluated, StepCompleted, UndecodableError, decode

_RECENT_STEPS = 20
_ENDS = 5
"""Steps at each end of the run over which a reward is averaged."""


class Learning(msgspec.Struct, frozen=True, kw_only=True):
    """Where a run is. `held_back_*`: (step, pass rate) of its first and newest held-back round; None where not known.

    `reward_*`: mean reward of the first and of the newest steps; `left_s`: seconds to the last step at the pace of the
    newest ones.
    """

    step: int
    steps: int
    steps_per_h: float | None
    left_s: float | None
    reward_first: float | None
    reward_last: float | None
    held_back_first: tuple[int, float] | None
    held_back_last: tuple[int, float] | None


def learning(log: RunLog, *, steps: int, now_s: float) -> Learning:
    """Reads `steps` whole and the parts of `groups` around the first step and since the newest ones."""
    done: dict[int, StepCompleted] = {}
    for event, _ in log.events("steps"):
        if isinstance(event, StepCompleted):
            done.setdefault(event.step, event)
    ordered = [done[step] for step in sorted(done)]
    newest = ordered[-_RECENT_STEPS:]
    steps_per_h, left_s = pace([(step.step, step.time_s) for step in newest], now_s, steps)
    rewards = [step.metrics["reward"] for step in ordered if "reward" in step.metrics]
    first = _rounds(_events(log, until_s=ordered[0].time_s if ordered else None))
    last = _rounds(_events(log, since_s=newest[0].time_s)) if newest else {}
    return Learning(
        step=max(done, default=0),
        steps=steps,
        steps_per_h=steps_per_h,
        left_s=left_s,
        reward_first=_mean(rewards[:_ENDS]),
        reward_last=_mean(rewards[-_ENDS:]),
        held_back_first=min(first.items()) if first else None,
        held_back_last=max(last.items()) if last else None,
    )


def as_line(now: Learning) -> str:
    """`step 21 of 50, 1,143 an hour, 2 min left; held back 0.457 → 0.785 (after step 20); reward 0.47 → 0.61`."""
    parts = [f"step {now.step} of {now.steps}" if now.steps else f"step {now.step}"]
    if now.steps_per_h is not None and not (now.steps and now.step >= now.steps):
        parts[0] += f", {now.steps_per_h:,.0f} an hour"
        parts[0] += f", {in_words(now.left_s)} left" if now.left_s else ""
    if now.held_back_first is not None and now.held_back_last is not None:
        (_, before), (step, after) = now.held_back_first, now.held_back_last
        parts.append(f"held back {before:.3f} → {after:.3f} (after step {step})")
    elif now.held_back_first is not None:
        parts.append(f"held back {now.held_back_first[1]:.3f}")
    if now.reward_first is not None and now.reward_last is not None:
        parts.append(f"reward {now.reward_first:.3f} → {now.reward_last:.3f}")
    return "; ".join(parts)


def _events(log: RunLog, *, since_s: float | None = None, until_s: float | None = None) -> Iterable[Event]:
    for record in log.read("groups", since_s=since_s, until_s=until_s):
        try:
            yield decode(record.value)
        except UndecodableError:
            continue


def _rounds(events: Iterable[Event]) -> dict[int, float]:
    """Step → pass rate over the groups of the round that are among `events`, each once."""
    groups: dict[int, dict[str, tuple[float, int]]] = {}
    for event in events:
        if isinstance(event, GroupEvaluated):
            passed = [member.passed for member in event.members if member.passed is not None]
            groups.setdefault(event.evaluation, {}).setdefault(event.group_id, (sum(passed), len(passed)))
    counts = {step: sum(n for _, n in found.values()) for step, found in groups.items()}
    return {step: sum(passed for passed, _ in groups[step].values()) / n for step, n in counts.items() if n}


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
