"""Topic administration: creating a run's topics, describing them, and how far a consumer group has read.

    with Admin("127.0.0.1:9092") as admin:
        admin.create_topics([TopicSpec("demo.rollouts", partitions=4)])
        admin.lag("demo.rewards", ["demo.rollouts"])

Blocking calls on kafka-python, whose admin client is the more complete one; from a coroutine, use `asyncio.to_thread`.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self, TypeVar

from kafka.admin import ConfigResource, KafkaAdminClient, OffsetSpec
from kafka.errors import IncompatibleBrokerVersion, KafkaError, TopicAlreadyExistsError, for_code
from kafka.structs import TopicPartition as _KafkaPartition

from streams.broker.base import BrokerError
from streams.broker.ready import wait_ready
from streams.errors import ConfigurationError, StreamsError

T = TypeVar("T")
_RETRY_S = 0.1


class AdminError(StreamsError):
    """An administrative request was refused, or not answered by its deadline."""


class TopicMismatchError(AdminError, ConfigurationError):
    """A topic is there already, and is not what the configuration says."""


class TopicPartition(NamedTuple):
    topic: str
    partition: int


class Committed(NamedTuple):
    """A group's committed position: the next offset to read, and the text that was committed with it."""

    offset: int
    metadata: str


@dataclasses.dataclass(frozen=True)
class TopicSpec:
    """What a topic must be like. `retention_ms` -1 keeps records indefinitely; None leaves the broker's default."""

    name: str
    partitions: int
    cleanup: Literal["delete", "compact"] = "delete"
    retention_ms: int | None = None
    config: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.partitions < 1:
            raise AdminError(f"topic {self.name} has {self.partitions} partitions; at least 1 is needed")

    def broker_config(self) -> dict[str, str]:
        """Kafka's topic settings for this specification."""
        settings: dict[str, str] = {"cleanup.policy": self.cleanup}
        if self.retention_ms is not None:
            settings["retention.ms"] = str(self.retention_ms)
        return settings | dict(self.config)


@dataclasses.dataclass(frozen=True)
class TopicDescription:
    """A topic as it is. `config` holds the settings that were made for it alone, not the broker's defaults."""

    name: str
    partitions: int
    replication: int
    config: Mapping[str, str]


class Admin:
    """A connection for administration. `deadline_s` bounds every call, connecting included.

    Every method raises `AdminError` when the broker refuses, is not there, or has not answered by the deadline, and may
    be called from any thread; calls are made one after another.
    """

    def __init__(self, bootstrap: str, deadline_s: float = 15.0) -> None:
        self._bootstrap = bootstrap
        self._deadline_s = deadline_s
        self._closed = threading.Event()
        deadline = time.monotonic() + deadline_s
        try:
            wait_ready(bootstrap, deadline_s, self._closed.wait)
            left_ms = max(500, int((deadline - time.monotonic()) * 1000))
            self._client = KafkaAdminClient(
                bootstrap_servers=bootstrap.split(","),
                client_id="eachprompt-admin",
                request_timeout_ms=int(deadline_s * 1000),
                bootstrap_timeout_ms=left_ms,
                reconnect_backoff_max_ms=500,
            )
        except (BrokerError, KafkaError) as error:
            raise AdminError(f"no administration at {bootstrap}: {error}") from None
        self._calls = ThreadPoolExecutor(1, thread_name_prefix="kafka-admin")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; a call that still waits fails."""
        if not self._closed.is_set():
            self._closed.set()
            self._client.close()
            self._calls.shutdown(wait=True)

    def create_topics(self, topics: Sequence[TopicSpec], replication: int = 1) -> list[str]:
        """Makes the topics that are missing and returns once all of them have leaders; the names that were made.

        A topic that exists with the same number of partitions and cleanup policy is left as it is, other settings
        included: an operator may have changed its retention on purpose. Otherwise `TopicMismatchError` says how it
        differs.
        """
        existing = self.describe([topic.name for topic in topics])
        missing = [topic for topic in topics if topic.name not in existing]
        if missing:
            request = {
                topic.name: {
                    "num_partitions": topic.partitions,
                    "replication_factor": replication,
                    "configs": topic.broker_config(),
                }
                for topic in missing
            }
            answer = self._call("creating topics", lambda: self._client.create_topics(request, raise_errors=False))
            for result in answer["topics"]:
                kind = for_code(result["error_code"])
                if result["error_code"] and kind is not TopicAlreadyExistsError:
                    raise AdminError(
                        f"topic {result['name']} was not made: {result.get('error_message') or kind.__name__}"
                    )
            names = [topic.name for topic in missing]
            timeout_ms = int(self._deadline_s * 1000)
            self._call(f"leaders of {names[0]} and others", lambda: self._client.wait_for_topics(names, timeout_ms))
            existing |= self.describe(names)
        for topic in topics:
            _check_alike(topic, existing[topic.name])
        return [topic.name for topic in missing]

    def delete_topics(self, topics: Sequence[str]) -> None:
        """Deletes the topics with all their records."""
        if topics:
            self._call(f"deleting {len(topics)} topics", lambda: self._client.delete_topics(list(topics)))

    def describe(self, topics: Iterable[str] | None = None) -> dict[str, TopicDescription]:
        """The topics that exist, of those named or (None) of all that are not the broker's own."""
        names = None if topics is None else list(topics)
        if names == []:
            return {}
        found = self._call("describing topics", lambda: self._client.describe_topics(names))
        present = {
            topic["name"]: topic for topic in found if topic["error_code"] == 0 and not topic.get("is_internal", False)
        }
        if not present:
            return {}
        resources = [ConfigResource("TOPIC", name) for name in present]
        config = self._call("reading topics' settings", lambda: self._client.describe_configs(resources))["topic"]
        return {
            name: TopicDescription(
                name,
                partitions=len(topic["partitions"]),
                replication=min((len(partition["replica_nodes"]) for partition in topic["partitions"]), default=0),
                config={key: entry["value"] for key, entry in sorted(config.get(name, {}).items())},
            )
            for name, topic in present.items()
        }

    def start_offsets(self, topics: Iterable[str]) -> dict[TopicPartition, int]:
        """Offset of the oldest record that is still there, for every partition."""
        return self._offsets(topics, int(OffsetSpec.EARLIEST), committed_only=False)

    def end_offsets(self, topics: Iterable[str], committed_only: bool = False) -> dict[TopicPartition, int]:
        """Offset after the newest record, for every partition.

        With `committed_only`, the offset up to which read_committed readers get: where an open transaction begins.
        Transaction markers take an offset each, so differences of offsets are upper bounds of record counts.
        """
        return self._offsets(topics, int(OffsetSpec.LATEST), committed_only)

    def offsets_at(self, topics: Iterable[str], timestamp_ms: int) -> dict[TopicPartition, int]:
        """Offset of the first record at or after a time (ms since 1970), the end offset where there is none."""
        names = list(topics)
        ends = self.end_offsets(names)
        found = self._offsets(names, timestamp_ms, committed_only=False)
        return {partition: offset if offset >= 0 else ends[partition] for partition, offset in found.items()}

    def newest_s(self, topics: Iterable[str]) -> dict[str, float]:
        """Unix time of each topic's newest record; a topic without records is absent."""
        found = self._entries(topics, int(OffsetSpec.MAX_TIMESTAMP), committed_only=False)
        newest: dict[str, float] = {}
        for partition, entry in found.items():
            if entry.timestamp > 0:
                newest[partition.topic] = max(newest.get(partition.topic, 0.0), entry.timestamp / 1000)
        return newest

    def committed(self, group: str) -> dict[TopicPartition, Committed]:
        """What a group has committed, with its metadata; empty for a group that is not known."""
        groups = self._call(f"offsets of group {group}", lambda: self._client.list_group_offsets(group))
        return {
            TopicPartition(partition.topic, partition.partition): Committed(entry.offset, entry.metadata or "")
            for partition, entry in groups.get(group, {}).items()
            if entry.offset >= 0
        }

    def lag(self, group: str, topics: Iterable[str]) -> dict[TopicPartition, int]:
        """Offsets between a group's position and the end, for every partition; all of it where nothing is committed."""
        names = list(topics)
        starts, committed, ends = self.start_offsets(names), self.committed(group), self.end_offsets(names)
        positions = {
            partition: committed.get(partition, Committed(start, "")).offset for partition, start in starts.items()
        }
        return {
            partition: max(0, end - max(positions[partition], starts[partition])) for partition, end in ends.items()
        }

    def delete_records(self, before: Mapping[TopicPartition, int]) -> None:
        """Deletes the records below an offset of each partition."""
        request = {_KafkaPartition(*partition): offset for partition, offset in before.items()}
        self._call("deleting records", lambda: self._client.delete_records(request))

    def _offsets(self, topics: Iterable[str], spec: int, committed_only: bool) -> dict[TopicPartition, int]:
        return {key: entry.offset for key, entry in self._entries(topics, spec, committed_only).items()}

    def _entries(self, topics: Iterable[str], spec: int, committed_only: bool) -> dict[TopicPartition, Any]:
        names = list(topics)
        described = self.describe(names)
        if unknown := [name for name in names if name not in described]:
            raise AdminError(f"topic {unknown[0]} does not exist at {self._bootstrap}")
        request = {
            _KafkaPartition(name, partition): spec
            for name, topic in described.items()
            for partition in range(topic.partitions)
        }
        isolation = "read_committed" if committed_only else "read_uncommitted"
        found = self._call(
            "looking up offsets", lambda: self._client.list_partition_offsets(request, isolation_level=isolation)
        )
        return {TopicPartition(key.topic, key.partition): entry for key, entry in sorted(found.items())}

    def _call(self, what: str, function: Callable[[], T]) -> T:
        """Runs a client call under the deadline, again after errors that pass (a leader or coordinator moving)."""
        deadline = time.monotonic() + self._deadline_s
        while True:
            if self._closed.is_set():
                raise AdminError(f"{what} at {self._bootstrap}: the connection is closed")
            try:
                return self._calls.submit(function).result(timeout=max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                self.close()
                raise AdminError(f"{what} at {self._bootstrap}: no answer within {self._deadline_s:g} s") from None
            except KafkaError as error:
                passes = error.retriable and not isinstance(error, IncompatibleBrokerVersion)
                if not passes or time.monotonic() + _RETRY_S >= deadline:
                    raise AdminError(f"{what} at {self._bootstrap}: {type(error).__name__}: {error}") from error
            self._closed.wait(_RETRY_S)


def create_topics(
    bootstrap: str, topics: Sequence[TopicSpec], replication: int = 1, deadline_s: float = 15.0
) -> list[str]:
    """`Admin.create_topics` on a connection of its own."""
    with Admin(bootstrap, deadline_s) as admin:
        return admin.create_topics(topics, replication)


def _check_alike(wanted: TopicSpec, found: TopicDescription) -> None:
    if found.partitions != wanted.partitions:
        raise TopicMismatchError(
            f"topic {wanted.name} exists with {found.partitions} partitions, but {wanted.partitions} are configured; "
            "use another run id, or the old number"
        )
    cleanup = found.config.get("cleanup.policy", "delete")
    if cleanup != wanted.cleanup:
        raise TopicMismatchError(
            f"topic {wanted.name} exists with cleanup.policy {cleanup!r}, but {wanted.cleanup!r} is needed"
        )
