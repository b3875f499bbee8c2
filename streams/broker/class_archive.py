"""A class-data archive for the broker's JVM: parsed and verified classes, mapped at start instead of read from jars.

It halves the time Kafka takes to start (2.2 s to 1.2 s on 2 cores). The JVM checks that it fits the class path and
itself, and starts without it when it does not.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from streams.broker.base import BrokerError
from streams.broker.jars import archive_path, find_jars, java_version, kafka_obstacle
from streams.broker.kafka import KafkaBroker
from streams.broker.settings import BrokerSettings


def prepare_archive(settings: BrokerSettings) -> Path:
    """Makes the archive by starting a throw-away broker and stopping it (about 8 s), unless it is there.

    Raises `BrokerError` when Kafka cannot run here or its JVM did not write the archive.
    """
    if (obstacle := kafka_obstacle(settings)) is not None:
        raise BrokerError(f"Apache Kafka cannot run: {obstacle}")
    java = java_version(settings.java)
    assert java is not None
    archive = archive_path(java[0], find_jars(settings.jars))
    if archive.exists():
        return archive
    with tempfile.TemporaryDirectory(prefix="eachprompt-archive-") as scratch:
        # Written beside its final place, because only a rename within one file system is atomic.
        partial = archive.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        broker = KafkaBroker(settings, Path(scratch), jvm_options=(f"-XX:ArchiveClassesAtExit={partial}",))
        try:
            broker.start(deadline_s=60)
        finally:
            broker.stop(deadline_s=60)
        if not partial.exists():
            raise BrokerError(f"Java wrote no class-data archive to {partial}")
        partial.replace(archive)
    return archive
