"""The figures of a run, computed from its log: what `summary.json` holds."""

import itertools
import statistics
from collections import Counter
from typing import Any

import msgspec

from analysis.audit.result import Audit
from analysis.history.history import History
from schemas import StepCompleted


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """k3 between engine and trainer without and with router replay, and the share of decisions that differ.

    Means over the tokens of the steps that measured both; None where none did.
    """

    k3_off: float | None
    k3_on: float | None
    flip_share: float | None


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """One run in figures. Times are seconds; `wall_s` is from the first to the last event on the log.

    `max_staleness` is over the sequences that were trained on. `learner_idle_share` is the share of the learner's time
    after its first step that it spent waiting for batches. `tokens_per_s` is over the time from the first rollout's
    start to the last one's end. A group that was dropped as stale was ready before, and counts as both. None is a
    figure that the log does not hold.
    """

    run: str
    steps: int
    seed: int
    pass_rate_first: float | None
    pass_rate_last: float | None
    evaluated_first: int
    evaluated_last: int
    groups_ready: int
    groups_dropped: int
    groups_dropped_by_reason: dict[str, int]
    rollouts: int
    max_staleness: int
    wall_s: float
    step_p50_s: float | None
    tokens_generated: int
    tokens_trained: int
    tokens_per_s: float | None
    learner_idle_share: float | None
    weights_pause_max_s: float | None
    broker: str
    restarts: dict[str, int]
    dead_letters: int
    replay: Replay
    audit: Audit


def summarise(history: History, audit: Audit, *, run: str, seed: int, broker: str, restarts: dict[str, int]) -> Summary:
    """The summary of `history`."""
    rounds = sorted(history.evaluations)
    first = history.evaluated(rounds[0]) if rounds else None
    last = history.evaluated(rounds[-1]) if rounds else None
    reasons = Counter(closing.reason for closing in history.closings.values())
    dropped = {reason: n for reason, n in sorted(reasons.items()) if reason not in ("ready", "evaluated")}
    steps = sorted(history.steps.values(), key=lambda step: step.step)
    began_s, ended_s = _span(history)
    begins = [rollout.timings.started_s for rollout in history.rollouts.values() if rollout.timings is not None]
    ends = [rollout.completed_s for rollout in history.rollouts.values() if rollout.completed_s is not None]
    generated = sum(rollout.tokens for rollout in history.rollouts.values())
    generating_s = max(ends) - min(begins) if begins and ends else 0.0
    gaps = [after.time_s - before.time_s for before, after in itertools.pairwise(steps)]
    return Summary(
        run=run,
        steps=len(steps),
        seed=seed,
        pass_rate_first=first[0] if first else None,
        pass_rate_last=last[0] if last else None,
        evaluated_first=first[1] if first else 0,
        evaluated_last=last[1] if last else 0,
        groups_ready=reasons["ready"],
        groups_dropped=sum(dropped.values()),
        groups_dropped_by_reason=dropped,
        rollouts=audit.produced,
        max_staleness=max((staleness for step in steps for staleness in _staleness(history, step)), default=0),
        wall_s=ended_s - began_s,
        step_p50_s=statistics.median(gaps) if gaps else None,
        tokens_generated=generated,
        tokens_trained=sum(step.tokens for step in steps),
        tokens_per_s=generated / generating_s if generating_s > 0 else None,
        learner_idle_share=_idle_share(steps),
        weights_pause_max_s=max((applied.pause_s for applied in history.applied.values()), default=None),
        broker=broker,
        restarts=restarts,
        dead_letters=len(history.dead_letters),
        replay=_replay(steps),
        audit=audit,
    )


def as_json(value: msgspec.Struct) -> dict[str, Any]:
    """A struct as plain values for JSON."""
    plain: dict[str, Any] = msgspec.to_builtins(value)
    return plain


def _span(history: History) -> tuple[float, float]:
    times = [request.time_s for request in history.requests.values()]
    times += [closing.time_s for closing in history.closings.values()]
    times += [step.time_s for step in history.steps.values()]
    return (min(times), max(times)) if times else (0.0, 0.0)


def _staleness(history: History, step: StepCompleted) -> list[int]:
    batch = history.batches.get(step.batch_ref)
    rejected = {refusal.rollout for refusal in step.rejected}
    sequences = batch.sequences if batch is not None else ()
    return [step.batch - sequence.oldest_version for sequence in sequences if sequence.rollout not in rejected]


def _idle_share(steps: list[StepCompleted]) -> float | None:
    """Waiting over waiting and working time; the first wait is left out, since the other services start during it."""
    waited_s = sum(step.waited_s for step in steps[1:])
    worked_s = sum(step.wall_s for step in steps[1:])
    return waited_s / (waited_s + worked_s) if waited_s + worked_s > 0 else None


def _replay(steps: list[StepCompleted]) -> Replay:
    both = [step for step in steps if "replay/k3_off" in step.metrics and "replay/k3_on" in step.metrics]
    return Replay(
        k3_off=_mean(both, "replay/k3_off"),
        k3_on=_mean(both, "replay/k3_on"),
        flip_share=_mean(steps, "replay/flip_share"),
    )


def _mean(steps: list[StepCompleted], name: str) -> float | None:
    """The mean of a metric weighted by each step's tokens; None where no step reported it."""
    reported = [(step.metrics[name], step.tokens) for step in steps if name in step.metrics and step.tokens]
    if not reported:
        return None
    return sum(value * tokens for value, tokens in reported) / sum(tokens for _, tokens in reported)
