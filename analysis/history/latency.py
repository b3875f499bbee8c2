"""Latencies: how long rollouts and weights took for each hop, by the timestamps of the events.

prompt requested ─▶ generating ─▶ completed ─▶ scored ─▶ group closed ─▶ batch planned ─▶ step ─▶ weights applied
"""

import math
from collections.abc import Iterable

import msgspec

from analysis.history.history import History, RolloutFacts


class Hop(msgspec.Struct, frozen=True, kw_only=True):
    """One hop: `count` measurements and their percentiles (nearest rank) in seconds."""

    name: str
    count: int
    p50_s: float
    p95_s: float
    p99_s: float
    max_s: float


def hops(history: History) -> list[Hop]:
    """Every hop with at least one measurement, in the order in which a rollout takes them, `end to end` last."""
    applied_s = _applied_times(history)
    durations: dict[str, list[float]] = {name: [] for name in _ROLLOUT_HOPS}
    trained: list[float] = []
    end_to_end: list[float] = []
    for facts in history.rollouts.values():
        for name, (begin, end) in _ROLLOUT_HOPS.items():
            _measure(durations[name], _time(facts, begin), _time(facts, end))
        step = history.step_of(facts.batch) if facts.batch is not None else None
        if step is not None:
            _measure(trained, facts.planned_s, step.time_s)
            _measure(end_to_end, facts.requested_s, applied_s.get(step.version))
    durations["batch planned → step completed"] = trained
    published: list[float] = []
    fetched: list[float] = []
    durations["step completed → weights published"] = published
    durations["weights published → applied"] = fetched
    durations["  generation paused"] = [applied.pause_s for applied in history.applied.values()]
    steps = {step.version: step.time_s for step in history.steps.values()}
    for weights in history.published.values():
        _measure(published, steps.get(weights.version), weights.time_s)
    for (_, version), applied in history.applied.items():
        known = history.published.get(version)
        _measure(fetched, known.time_s if known else None, applied.time_s)
    durations["end to end: requested → weights applied"] = end_to_end
    return [_hop(name, found) for name, found in durations.items() if found]


_ROLLOUT_HOPS = {
    "prompt requested → rollout completed": ("requested_s", "completed_s"),
    "  waiting for a producer": ("requested_s", "received_s"),
    "  waiting for the engine": ("received_s", "started_s"),
    "  generating": ("started_s", "finished_s"),
    "rollout completed → scored": ("completed_s", "scored_s"),
    "scored → group closed": ("scored_s", "closed_s"),
    "group closed → batch planned": ("closed_s", "planned_s"),
}


def _time(facts: RolloutFacts, name: str) -> float | None:
    if name in ("received_s", "started_s", "finished_s"):
        return None if facts.timings is None else float(getattr(facts.timings, name))
    found: float | None = getattr(facts, name)
    return found


def _applied_times(history: History) -> dict[int, float]:
    """Version → when the first producer applied it or a newer one (unix seconds)."""
    times: dict[int, float] = {}
    first = math.inf
    by_version = sorted(history.applied.items(), key=lambda item: item[0][1], reverse=True)
    newest = max((step.version for step in history.steps.values()), default=0)
    index = 0
    for version in range(newest, -1, -1):
        while index < len(by_version) and by_version[index][0][1] >= version:
            first = min(first, by_version[index][1].time_s)
            index += 1
        if first < math.inf:
            times[version] = first
    return times


def _measure(into: list[float], begin: float | None, end: float | None) -> None:
    if begin is not None and end is not None:
        into.append(end - begin)


def _hop(name: str, durations: Iterable[float]) -> Hop:
    ordered = sorted(durations)
    return Hop(
        name=name,
        count=len(ordered),
        p50_s=percentile(ordered, 0.50),
        p95_s=percentile(ordered, 0.95),
        p99_s=percentile(ordered, 0.99),
        max_s=ordered[-1],
    )


def percentile(ordered: list[float], share: float) -> float:
    """The nearest-rank percentile of values in ascending order. ValueError: there are none."""
    if not ordered:
        raise ValueError("no values, so no percentile")
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
