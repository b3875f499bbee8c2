"""What is done to whom and when: a seeded list, decided before anything runs. Pure.

schedule(seed=1, count=300, gap_s=0.6)     # light services, recorded load, digest: at a high rate
full_schedule(seed=1)                      # engine and learner too: each of their blows in turn, when all are up again
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count as numbers
from typing import Final

SERVICES: Final = ("dispatcher", "producer", "rewards-0", "rewards-1", "groups-0", "groups-1", "batches", "learner")
LIGHT_SERVICES: Final = tuple(name for name in SERVICES if name not in ("producer", "learner"))
BROKER: Final = "broker"
ENGINE: Final = "engine"
"""vLLM's engine core, a process below the producer."""

_TRANSACTION: Final = ("transaction.begun", "transaction.sent", "transaction.committed")
_WORKER: Final = ("worker.handled", "worker.committing")
POINTS: Final = {
    "dispatcher": _TRANSACTION,
    "producer": (*_WORKER, "blobs.written", "rollouts.written"),
    "rewards": _WORKER,
    "groups": _TRANSACTION,
    "batches": _TRANSACTION,
    "learner": (
        *_TRANSACTION,
        "learner.training",
        "learner.trained",
        "learner.announced",
        "checkpoint.manifest",
        "checkpoint.renamed",
    ),
}
"""Service → the fault points on its way."""

FULL_POINTS: Final = {
    **POINTS,
    "learner": (
        *POINTS["learner"],
        "checkpoint.shards",
        "publisher.uploaded",
        "publisher.published",
        "blobs.written",
    ),
}
"""The same where the learner is the real one."""

_WEIGHTS: Final = {"kill": 40, "point": 36, "pause": 8, "term": 6, "zombie": 4, "network": 6, "disk": 2, "clock": 4}
_LIGHT_WEIGHTS: Final = {"kill": 40, "point": 36, "pause": 8, "term": 6, "network": 6, "clock": 4}
_NETWORK: Final = ("stall", "reset", "throttle", "refuse")
_BROKER: Final = ("kill", "pause", "term")
_LIGHT_BETWEEN: Final = 4
_LIGHT_GAP_S: Final = 1.5
_JUMP_S: Final = 1700.0
"""Two jumps together stay below `groups.remember_s`, which is the assumption that closed groups rest on."""


@dataclass(frozen=True)
class Blow:
    """One fault: `kind` happens to `target` `after_s` seconds after the one before; `detail` is its point or form.

    Where it is `settled`, it waits until everybody has recovered from what was before.
    """

    kind: str
    target: str
    after_s: float
    detail: str = ""
    lasts_s: float = 0.0
    hit: int = 1
    settled: bool = False


HEAVY: Final = (
    *(Blow("point", "learner-0", 0.0, point) for point in FULL_POINTS["learner"]),
    *(Blow("point", "producer", 0.0, point) for point in FULL_POINTS["producer"]),
    *(Blow("kill", target, 0.0) for target in ("learner-0", "learner-1", "producer", ENGINE, BROKER)),
    *(Blow("pause", target, 0.0, lasts_s=3.0) for target in ("learner-0", "learner-1", "producer", BROKER)),
    *(Blow("term", target, 0.0) for target in ("learner-1", "producer", BROKER)),
    *(Blow("network", "learner-0", 0.0, form, lasts_s=4.0) for form in _NETWORK),
    *(Blow("network", "producer", 0.0, form, lasts_s=4.0) for form in _NETWORK),
    Blow("disk", "producer", 0.0, lasts_s=4.0),
    Blow("disk", "learner-0", 0.0, lasts_s=8.0),
)
"""What only the real engine, the real learner and the broker can be hit with; each takes a while to come back."""


def sweep(gap_s: float) -> Iterator[Blow]:
    """Every fault point of every service once, `gap_s` apart."""
    for service, points in POINTS.items():
        target = next(name for name in SERVICES if name.startswith(service))
        for point in points:
            yield Blow("point", target, gap_s, detail=point)


def schedule(seed: int, count: int, gap_s: float, broker_every: int = 40) -> Iterator[Blow]:
    """`count` blows, `gap_s` apart on average; every `broker_every`-th, from the middle of the first lot on, hits the
    broker, by turns with SIGKILL, a pause and SIGTERM. Each kind and each service has its turn by weight.
    """
    draw = random.Random(seed)
    for number in range(count):
        after_s = draw.uniform(0.3, 1.7) * gap_s
        if number % broker_every == broker_every // 2:
            kind = _BROKER[(number // broker_every) % len(_BROKER)]
            yield Blow(kind, BROKER, after_s, lasts_s=draw.uniform(0.5, 3.0) if kind == "pause" else 0.0)
            continue
        (kind,) = draw.choices(list(_WEIGHTS), list(_WEIGHTS.values()))
        yield _drawn(draw, kind, draw.choice(SERVICES), after_s)


def full_schedule(seed: int) -> Iterator[Blow]:
    """Without end: every heavy blow once in an order of the seed's, light services struck in between; then again."""
    draw = random.Random(seed)
    for _ in numbers():
        for heavy in draw.sample(HEAVY, len(HEAVY)):
            yield replace(heavy, after_s=_LIGHT_GAP_S, settled=True)
            for _ in range(_LIGHT_BETWEEN):
                (kind,) = draw.choices(list(_LIGHT_WEIGHTS), list(_LIGHT_WEIGHTS.values()))
                yield _drawn(draw, kind, draw.choice(LIGHT_SERVICES), draw.uniform(0.3, 1.7) * _LIGHT_GAP_S)


def _drawn(draw: random.Random, kind: str, target: str, after_s: float) -> Blow:
    match kind:
        case "point":
            point = draw.choice(POINTS[target.partition("-")[0]])
            return Blow(kind, target, after_s, detail=point, hit=draw.choice((1, 1, 2, 5)))
        case "network":
            return Blow(kind, target, after_s, detail=draw.choice(_NETWORK), lasts_s=draw.uniform(0.3, 3.0))
        case "disk":
            return Blow(kind, draw.choice(("producer", "learner")), after_s, lasts_s=draw.uniform(0.3, 3.0))
        case "clock":
            jump_s = draw.choice((-1, 1)) * draw.choice((5.0, 70.0, _JUMP_S))
            return Blow(kind, target, after_s, detail=f"{jump_s:+g}", lasts_s=draw.uniform(0.3, 3.0))
        case "pause" | "zombie":
            return Blow(kind, target, after_s, lasts_s=draw.uniform(0.3, 3.0))
        case _:
            return Blow(kind, target, after_s)
