"""The topic catalogue: short names, keys, events, partitions, retention. Who reads and writes them:
`schemas.services`.
"""

from dataclasses import dataclass
from typing import Final, Literal

from schemas.events import (
    BatchPlanned,
    CanaryScored,
    DeadLetter,
    DeadLetterPurged,
    DeadLetterReplayed,
    EventBase,
    GroupDropped,
    GroupEvaluated,
    GroupReady,
    GroupRequested,
    RolloutCompleted,
    RolloutDisposed,
    RolloutScored,
    StepCompleted,
    WeightsApplied,
    WeightsPublished,
    WeightsRefused,
)


@dataclass(frozen=True)
class Topic:
    """One topic of a run. `sharded`: has the run's number of partitions and is keyed by group; else it has one."""

    name: str
    key: str | None
    events: tuple[type[EventBase], ...]
    sharded: bool
    cleanup: Literal["delete", "compact"]

    def on(self, run: str) -> str:
        """The topic's full name on the broker: `<run>.<name>`."""
        return f"{run}.{self.name}"


TOPICS: Final[dict[str, Topic]] = {
    topic.name: topic
    for topic in (
        Topic("prompts", "group_id", (GroupRequested,), True, "delete"),
        Topic("rollouts", "group_id", (RolloutCompleted,), True, "delete"),
        Topic("scores", "group_id", (RolloutScored,), True, "delete"),
        Topic("groups", "group_id", (GroupReady, GroupDropped, GroupEvaluated, RolloutDisposed), True, "delete"),
        Topic("batches", None, (BatchPlanned, GroupDropped), False, "delete"),
        Topic("steps", None, (StepCompleted,), False, "delete"),
        Topic("weights", "version", (WeightsPublished,), False, "compact"),
        Topic("applied", "producer_id", (WeightsApplied, CanaryScored, WeightsRefused), False, "compact"),
        Topic("dead-letters", "source", (DeadLetter, DeadLetterReplayed, DeadLetterPurged), False, "delete"),
    )
}


def topic(name: str) -> Topic:
    """The catalogue's entry. ValueError names what is allowed."""
    try:
        return TOPICS[name]
    except KeyError:
        raise ValueError(f"topic {name!r} is not one of {', '.join(TOPICS)}") from None


def partition_of(key: str, partitions: int) -> int:
    """The partition of a group's records, the same on every sharded topic and in every client library.

    FNV-1a, 64 bit: stated here so that no client's own default partitioner decides where a group lives.
    """
    value = 0xCBF29CE484222325
    for byte in key.encode():
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return value % partitions
