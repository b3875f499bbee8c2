"""What is done to whom and when: a seeded list, decided before anything runs. Pure."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

SERVICES: Final = ("dispatcher", "producer", "rewards-0", "rewards-1", "groups-0", "groups-1", "batches", "learner")
BROKER: Final = "broker"

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

_WEIGHTS: Final = {"kill": 40, "point": 36, "pause": 8, "term": 6, "zombie": 4, "network": 6, "disk": 2}
_NETWORK: Final = ("stall", "reset", "throttle", "refuse")


@dataclass(frozen=True)
class Blow:
    """One fault: `kind` happens to `target` `after_s` seconds after the one before; `detail` is its point or form."""

    kind: str
    target: str
    after_s: float
    detail: str = ""
    lasts_s: float = 0.0
    hit: int = 1


def sweep(gap_s: float) -> Iterator[Blow]:
    """Every fault point of every service once, `gap_s` apart."""
    for service, points in POINTS.items():
        target = next(name for name in SERVICES if name.startswith(service))
        for point in points:
            yield Blow("point", target, gap_s, detail=point)


def schedule(seed: int, count: int, gap_s: float, broker_every: int = 40) -> Iterator[Blow]:
    """`count` blows, `gap_s` apart on average; every `broker_every`-th, from the middle of the first lot on, hits the
    broker, by turns with SIGKILL and with a pause. Each kind and each service has its turn by weight.
    """
    draw = random.Random(seed)
    for number in range(count):
        after_s = draw.uniform(0.3, 1.7) * gap_s
        if number % broker_every == broker_every // 2:
            kill = (number // broker_every) % 2 == 0
            yield Blow("kill" if kill else "pause", BROKER, after_s, lasts_s=0.0 if kill else draw.uniform(0.5, 3.0))
            continue
        (kind,) = draw.choices(list(_WEIGHTS), list(_WEIGHTS.values()))
        target = draw.choice(SERVICES)
        match kind:
            case "point":
                point = draw.choice(POINTS[target.partition("-")[0]])
                yield Blow(kind, target, after_s, detail=point, hit=draw.choice((1, 1, 2, 5)))
            case "network":
                yield Blow(kind, target, after_s, detail=draw.choice(_NETWORK), lasts_s=draw.uniform(0.3, 3.0))
            case "disk":
                yield Blow(kind, draw.choice(("producer", "learner")), after_s, lasts_s=draw.uniform(0.3, 3.0))
            case "pause" | "zombie":
                yield Blow(kind, target, after_s, lasts_s=draw.uniform(0.3, 3.0))
            case _:
                yield Blow(kind, target, after_s)
