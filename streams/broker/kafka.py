"""Apache Kafka as a child process: one JVM that is broker and controller (KRaft)."""

from __future__ import annotations

import base64
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

from streams.broker.base import BrokerConfigurationError, BrokerError
from streams.broker.jars import archive_path, find_jars, java_version, kafka_obstacle
from streams.broker.local import LocalBroker
from streams.broker.ports import HOST, free_port
from streams.broker.settings import MIB, BrokerSettings
from streams.processes.child import Child

_NODE_ID = 1
_LOG4J = Path(__file__).with_name("log4j2.properties")
_FORMATTED = "meta.properties"

_LATE_OPTIMISING = (
    "-XX:Tier4InvocationThreshold=50000",
    "-XX:Tier4MinInvocationThreshold=6000",
    "-XX:Tier4CompileThreshold=150000",
    "-XX:Tier4BackEdgeThreshold=400000",
)
"""Ten times the JVM's defaults before its optimising compiler takes on a method: under them a start compiles what runs
only at a start, and takes 3.3 s of CPU instead of 2.3, while everybody waits. What serves records passes them soon."""


class KafkaBroker(LocalBroker):
    """Durable: acknowledged records, committed offsets and transactions survive kill -9 of the broker.

    They are in the page cache, not synced to disk, when acknowledged: a power failure can lose the last seconds.
    """

    kind: ClassVar[Literal["kafka"]] = "kafka"

    def __init__(self, settings: BrokerSettings, directory: Path, jvm_options: tuple[str, ...] = ()) -> None:
        super().__init__(settings, directory)
        self._jvm_options = jvm_options
        self._program: str | None = None

    def _command(self, port: int, deadline_s: float) -> list[str]:
        data = self.home / "kafka"
        if not (data / _FORMATTED).exists():
            self._format(data, deadline_s)
        properties = self.home / "server.properties"
        write_properties(properties, server_properties(self.settings, data, port, free_port()))
        heap = (f"-Xmx{self.settings.heap_mib}m", "-XX:+UseSerialGC", "-XX:+ExitOnOutOfMemoryError")
        return [*self._java(*heap, *_LATE_OPTIMISING, *self._jvm_options), "kafka.Kafka", str(properties)]

    def _java(self, *options: str) -> list[str]:
        # Asked once: each answer starts a JVM, and a restart after a crash is to be quick.
        program = self._program = self._program or self._find_java()
        jars = find_jars(self.settings.jars)
        logging = (f"-Dlog4j2.configurationFile={_LOG4J.as_uri()}", f"-Deachprompt.broker.log={self.log}")
        archive = archive_path(program, jars)
        sharing = (f"-XX:SharedArchiveFile={archive}",) if archive.exists() else ()
        return [program, *options, *sharing, *logging, "-cp", os.pathsep.join(map(str, jars))]

    def _find_java(self) -> str:
        if (obstacle := kafka_obstacle(self.settings)) is not None:
            raise BrokerError(f"Apache Kafka cannot run: {obstacle}")
        java = java_version(self.settings.java)
        assert java is not None, "kafka_obstacle has found it"
        return java[0]

    def _format(self, data: Path, deadline_s: float) -> None:
        """Makes the data directory with a random cluster id; renamed into place, so it is there whole or not at all."""
        partial = data.with_name(f"{data.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        properties = self.home / "format.properties"
        write_properties(properties, server_properties(self.settings, partial, 1, 2))
        command = [*self._java("-XX:TieredStopAtLevel=1"), "kafka.tools.StorageTool", "format"]
        tool = Child.start(
            [*command, "-t", random_cluster_id(), "-c", str(properties)], log=self.log, name="Kafka's storage tool"
        )
        try:
            code = tool.wait(deadline_s)
        finally:
            tool.stop(0)
        properties.unlink()
        if code != 0:
            said = f"ended with code {code}" if code is not None else f"did not end within {deadline_s:g} s"
            raise BrokerError(f"formatting {data} failed: Kafka's storage tool {said} (see {self.log})")
        partial.replace(data)


def random_cluster_id() -> str:
    """22 URL-safe base64 characters that do not begin with a hyphen, which would be read as an option."""
    value = bytearray(uuid.uuid4().bytes)
    value[0] &= 0x7F
    return base64.urlsafe_b64encode(value).decode().rstrip("=")


def server_properties(settings: BrokerSettings, data: Path, port: int, controller_port: int) -> dict[str, str | int]:
    """The settings of a broker that is alone. Times are in milliseconds, sizes in bytes."""
    if "," in str(data):
        raise BrokerConfigurationError(f"Kafka cannot keep its data in {str(data)!r}: the path holds a comma")
    return {
        "process.roles": "broker,controller",
        "node.id": _NODE_ID,
        "controller.quorum.voters": f"{_NODE_ID}@{HOST}:{controller_port}",
        "listeners": f"PLAINTEXT://{HOST}:{port},CONTROLLER://{HOST}:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://{HOST}:{port}",
        "controller.listener.names": "CONTROLLER",
        "log.dirs": str(data),
        "auto.create.topics.enable": "false",
        "default.replication.factor": 1,
        "offsets.topic.replication.factor": 1,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
        "offsets.topic.num.partitions": 4,
        "transaction.state.log.num.partitions": 4,
        "share.coordinator.state.topic.num.partitions": 4,
        # After kill -9 the old registration must expire before the broker serves again: 9 s by default.
        "broker.session.timeout.ms": 2000,
        "broker.heartbeat.interval.ms": 300,
        "group.initial.rebalance.delay.ms": 0,
        "group.min.session.timeout.ms": 1000,
        # How soon after its timeout a transaction whose producer vanished stops holding up read_committed readers.
        "transaction.abort.timed.out.transaction.cleanup.interval.ms": 1000,
        # Runs pause for weeks and resume; offsets of an empty group are dropped after 7 days by default.
        "offsets.retention.minutes": 90 * 24 * 60,
        "message.max.bytes": settings.message_max_bytes,
        "replica.fetch.max.bytes": settings.message_max_bytes,
        "socket.request.max.bytes": settings.message_max_bytes + 40 * MIB,
        "log.cleaner.dedupe.buffer.size": 16 * MIB,
        "num.network.threads": 2,
        "num.io.threads": 4,
        "background.threads": 2,
    }


def write_properties(path: Path, properties: Mapping[str, str | int]) -> None:
    """Writes a Java properties file; backslashes and characters beyond ASCII are escaped."""
    lines = []
    for key, value in properties.items():
        escaped = str(value).replace("\\", "\\\\")
        utf16 = "".join(character if character.isascii() else _java_escape(character) for character in escaped)
        lines.append(f"{key}={utf16}\n")
    path.write_text("".join(lines), encoding="ascii")


def _java_escape(character: str) -> str:
    units = character.encode("utf-16-be")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
