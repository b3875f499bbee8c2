"""What a campaign runs: recorded load and a digest in place of engine and learner, or everything as in the demo."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

REPLICAS: Final[Mapping[str, int]] = MappingProxyType({"rewards": 2, "groups": 2})
PARTITIONS: Final = 4
GROUPS_PER_BATCH: Final = 8
LEARNER: Final = "learner"

_TABLES: Final[Mapping[str, Mapping[str, Any]]] = {
    "run": {
        "id": "chaos",
        "steps": 0,
        "groups_per_batch": GROUPS_PER_BATCH,
        "group_size": 4,
        "max_staleness": 3,
        "partitions": PARTITIONS,
        "drain_s": 3.0,
    },
    "replicas": REPLICAS,
    "blobs": {"inline_max_bytes": 16},
    "groups": {"unheard_s": 5.0},
    "dispatcher": {"evaluate_every": 50, "evaluate_samples": 1, "group_timeout_s": 60.0},
}


@dataclass(frozen=True)
class Shape:
    """`stand_ins`: service → module that is run in its place. An armed point not reached within `point_s` is taken
    back; within `warm_s` the first steps, and within `quiet_s` everybody's recovery, are expected."""

    ranks: int
    disk_mib: int
    point_s: float
    warm_s: float
    quiet_s: float
    stand_ins: Mapping[str, str] = field(default_factory=dict)
    learner: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tables(self) -> dict[str, dict[str, Any]]:
        """What differs from the demo's configuration."""
        tables = {name: dict(values) for name, values in _TABLES.items()}
        tables["run"]["ranks"] = self.ranks
        return {**tables, LEARNER: dict(self.learner)}


LIGHT: Final = Shape(
    ranks=1,
    disk_mib=1024,
    point_s=8.0,
    warm_s=60.0,
    quiet_s=90.0,
    stand_ins={"producer": "tests.chaos.load", LEARNER: "tests.chaos.stepper"},
)
FULL: Final = Shape(
    ranks=2, disk_mib=3072, point_s=60.0, warm_s=180.0, quiet_s=180.0, learner={"checkpoint": {"every": 2}}
)


def heard_as(name: str) -> str:
    """Whose records tell of the progress of process `name`: one rank of the learner speaks, and no engine core."""
    service = name.partition("-")[0]
    if service == "engine":
        return "producer"
    return name if service in REPLICAS else service
