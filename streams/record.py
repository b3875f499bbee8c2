"""One record of the log as stages see it, and one event that a stage wants written."""

from dataclasses import dataclass, field

from schemas import Event, Ref


@dataclass(frozen=True, slots=True)
class Record:
    """A record as it was read. `topic` is the catalogue's short name; `time_s` the broker's timestamp, unix seconds."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes
    headers: dict[str, bytes]
    time_s: float

    @property
    def ref(self) -> Ref:
        """Where it is."""
        return Ref(self.topic, self.partition, self.offset)


@dataclass(frozen=True, slots=True)
class Output:
    """An event to be written to `topic` (short name).

    `key` decides the partition of a sharded topic and is the compaction key of a compacted one. The record's trace
    context continues that of `cause`, or of the record that is being processed where that is None; `links` are further
    records it came from.
    """

    topic: str
    event: Event
    key: str | None = None
    cause: Record | None = None
    links: tuple[Record, ...] = field(default=())
