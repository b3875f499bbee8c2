"""Whether a run learns, from a few records of its log: `status` must answer at once however long the run is."""

from collections.abc import Iterable, Sequence

import msgspec

from analysis.history.run_log import RunLog
from analysis.views.durations import in_words
from analysis.views.live_figures import pace
from schemas import Event, GroupDropped, GroupEvaluated, GroupRequested, StepCompleted, UndecodableError, decode

_RECENT_STEPS = 20
_ENDS = 5
"""Steps at each end of the run over which a reward is averaged."""


class Learning(msgspec.Struct, frozen=True, kw_only=True):
    """Where a run is. `held_back_*`: (step, pass rate) of its first and newest complete held-back round, or None.

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


def learning(log: RunLog, *, steps: int, now_s: float | None) -> Learning:
    """Reads `steps` whole, and what holds the first and the newest held-back round of `prompts` and `groups`.

    `now_s`: Unix seconds; None for a run that is not up, whose next step does not come late.
    """
    done: dict[int, StepCompleted] = {}
    for event, _ in log.events("steps"):
        if isinstance(event, StepCompleted):
            done.setdefault(event.step, event)
    ordered = [done[step] for step in sorted(done)]
    newest = [(step.step, step.time_s) for step in ordered[-_RECENT_STEPS:]]
    steps_per_h, left_s = pace(newest, newest[-1][1] if now_s is None and newest else now_s or 0.0, steps)
    rewards = [step.metrics["reward"] for step in ordered if "reward" in step.metrics]
    first, last = _first_round(log, ordered), _newest_round(log, ordered)
    return Learning(
        step=max(done, default=0),
        steps=steps,
        steps_per_h=steps_per_h,
        left_s=left_s,
        reward_first=_mean(rewards[:_ENDS]),
        reward_last=_mean(rewards[-_ENDS:]),
        held_back_first=first,
        held_back_last=last,
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


def _first_round(log: RunLog, done: Sequence[StepCompleted]) -> tuple[int, float] | None:
    """The first round that is complete: read up to the first step, and further while there is none."""
    reach = 1
    while reach < len(done):
        # Its requests are looked for further than its outcomes, so that they are all there.
        requests, outcomes = done[min(4 * reach, len(done) - 1)].time_s, done[reach - 1].time_s
        if found := _rounds(log, requested_until_s=requests, until_s=outcomes):
            return min(found.items())
        reach *= 4
    found = _rounds(log)
    return min(found.items()) if found else None


def _newest_round(log: RunLog, done: Sequence[StepCompleted]) -> tuple[int, float] | None:
    """The newest round that is complete: read since the newest steps, and from further back while there is none."""
    reach = _RECENT_STEPS
    while reach < len(done):
        # A round that was asked for before the first of these steps may have lost some of its requests here.
        begin = done[-reach]
        found = {step: rate for step, rate in _rounds(log, since_s=begin.time_s).items() if step >= begin.step}
        if found:
            return max(found.items())
        reach *= 4
    found = _rounds(log)
    return max(found.items()) if found else None


def _rounds(
    log: RunLog,
    *,
    since_s: float | None = None,
    until_s: float | None = None,
    requested_until_s: float | None = None,
) -> dict[int, float]:
    """Step → pass rate of every held-back round that is complete in a part of the log (Unix seconds).

    Complete: each of its groups is closed, or a newer round was asked for, which ends the one before.
    """
    asked: dict[int, set[str]] = {}
    for event in _events(log, "prompts", since_s, requested_until_s):
        if isinstance(event, GroupRequested) and event.evaluation is not None:
            asked.setdefault(event.evaluation, set()).add(event.group_id)
    if not asked:
        return {}
    passed: dict[str, tuple[float, int]] = {}
    for event in _events(log, "groups", since_s, until_s):
        if isinstance(event, GroupEvaluated):
            found = [member.passed for member in event.members if member.passed is not None]
            passed.setdefault(event.group_id, (sum(found), len(found)))
        elif isinstance(event, GroupDropped):
            passed.setdefault(event.group_id, (0.0, 0))
    rates: dict[int, float] = {}
    for step, groups in asked.items():
        closed = groups & passed.keys()
        judged = sum(passed[group][1] for group in closed)
        if judged and (len(closed) == len(groups) or step < max(asked)):
            rates[step] = sum(passed[group][0] for group in closed) / judged
    return rates


def _events(log: RunLog, topic: str, since_s: float | None, until_s: float | None) -> Iterable[Event]:
    for record in log.read(topic, since_s=since_s, until_s=until_s):
        try:
            yield decode(record.value)
        except UndecodableError:
            continue


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
