"""The topics of one run as tools read them: all records, decoded, and how far each service has finished them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from schemas import TOPICS, Event, UndecodableError, decode
from schemas.services import SERVICES, readers
from streams.log.admin import Admin, TopicPartition
from streams.log.history import read_topic
from streams.record import Record
from streams.stages.offsets import OffsetTracker


@dataclass(frozen=True)
class RunLog:
    """The topics of one run on a broker that is up; `bootstrap` is its `host:port`."""

    bootstrap: str
    run: str

    def read(self, topic: str, *, since_s: float | None = None, until_s: float | None = None) -> Iterator[Record]:
        """Every record of `topic` (short name) up to its present end, written in [since_s, until_s) (unix seconds)."""
        return read_topic(self.bootstrap, self.run, topic, since_s=since_s, until_s=until_s)

    def events(self, topic: str) -> Iterator[tuple[Event, Record]]:
        """Every record of `topic`, decoded; records that do not decode are skipped (they are in the dead letters)."""
        for record in self.read(topic):
            try:
                yield decode(record.value), record
            except UndecodableError:
                continue

    def full(self, topic: str) -> str:
        """The topic's name on the broker, `<run>.<topic>`."""
        return TOPICS[topic].on(self.run)

    def finished(self, stage: str, topic: str) -> "Finished":
        """What `stage` has committed of its input `topic` so far."""
        with Admin(self.bootstrap) as admin:
            committed = admin.committed(f"{self.run}.{stage}")
        return Finished(
            {
                partition: OffsetTracker.restore(entry.offset, entry.metadata)
                for (name, partition), entry in committed.items()
                if name == self.full(topic)
            }
        )

    def log_start(self, topic: str) -> dict[int, int]:
        """Partition → the first offset that retention has left."""
        with Admin(self.bootstrap) as admin:
            starts = admin.start_offsets([self.full(topic)])
        return {partition: offset for (_, partition), offset in starts.items()}


@dataclass(frozen=True)
class Finished:
    """The committed progress of one stage on one topic."""

    partitions: dict[int, OffsetTracker]

    def __call__(self, partition: int, offset: int) -> bool:
        tracker = self.partitions.get(partition)
        return tracker is not None and tracker.is_finished(offset)


def backlog(admin: Admin, run: str) -> dict[str, dict[str, int]]:
    """Records that are not finished, summed over partitions: topic (short name) → service that commits it → records."""
    found: dict[str, dict[str, int]] = {}
    for name, service in SERVICES.items():
        for topic in service.commits:
            lag = admin.lag(f"{run}.{name}", [TOPICS[topic].on(run)])
            found.setdefault(topic, {})[name] = sum(lag.values())
    return {topic: {name: found[topic][name] for name in readers(topic)} for topic in TOPICS if topic in found}


def main_lag(lags: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Of each topic, the records that the service whose input it is has not finished."""
    return {topic: by_reader[readers(topic)[0]] for topic, by_reader in lags.items()}


__all__ = ["Finished", "RunLog", "TopicPartition", "backlog", "main_lag"]
