"""From settings and a run directory to the broker that serves it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

from streams.broker.base import Broker, BrokerConfigurationError, BrokerError
from streams.broker.endpoint import find_endpoint
from streams.broker.local import LocalBroker
from streams.broker.readers import Readers
from streams.broker.settings import BrokerSettings

_log = logging.getLogger(__name__)

EXTERNAL_S: Final = 7.0
"""How long a tool waits for a cluster to answer."""

LAST_S: Final = 600.0
"""How long the tool that started the broker waits for others that read by it before it ends it all the same."""


def choose_kind(settings: BrokerSettings, directory: Path) -> tuple[Literal["kafka", "embedded", "external"], str]:
    """The kind that `settings` mean for this directory, and the reason in words.

    `auto` stays with the kind whose data the directory holds; else it is Kafka if that can run here, else the embedded
    broker. Raises `BrokerConfigurationError` when the directory holds another kind's data than the one asked for.
    """
    from streams.broker.jars import kafka_obstacle

    if settings.kind == "external":
        return "external", "broker.kind says so"
    held = [kind for kind in ("kafka", "embedded") if (directory / "broker" / kind).is_dir()]
    if settings.kind != "auto":
        if held and settings.kind not in held:
            raise BrokerConfigurationError(
                f"{directory} holds the topics of another kind, {held[0]}, but broker.kind is {settings.kind!r}"
            )
        return settings.kind, "broker.kind says so"
    if "kafka" in held:
        return "kafka", f"{directory} holds its topics"
    if "embedded" in held:
        return "embedded", f"{directory} holds its topics"
    obstacle = kafka_obstacle(settings)
    if obstacle is None:
        return "kafka", "Java and Kafka's jars are there"
    return "embedded", f"Apache Kafka cannot run: {obstacle}"


def open_broker(settings: BrokerSettings, directory: Path) -> Broker:
    """The broker of a run directory, not started yet.

    Raises `BrokerConfigurationError` when the settings do not allow it, as for an embedded broker without `ephemeral`.
    """
    kind, reason = choose_kind(settings, directory)
    if settings.kind == "auto":
        _log.info("broker: %s, because %s", kind, reason)
    match kind:
        case "kafka":
            from streams.broker.kafka import KafkaBroker

            return KafkaBroker(settings, directory)
        case "embedded":
            from streams.broker.embedded import EmbeddedBroker

            try:
                return EmbeddedBroker(settings, directory)
            except BrokerConfigurationError as error:
                raise BrokerConfigurationError(
                    f"{reason}; {error}" if settings.kind == "auto" else str(error)
                ) from None
        case "external":
            from streams.broker.external import ExternalBroker

            return ExternalBroker(settings)


@contextlib.contextmanager
def running_broker(settings: BrokerSettings, directory: Path, deadline_s: float = 60.0) -> Iterator[str]:
    """The bootstrap address of a run's broker, which is started for as long as the block lasts if it is not up.

    This is how tools that read a run directory reach its topics. They keep nobody out: the broker is lent, so that a
    run that starts meanwhile ends it and serves at the same address, where the tools go on reading; and the tool that
    started it ends last of those that read. Raises `BrokerError` as `Broker.start` does; for a cluster after
    `EXTERNAL_S` at the latest, for nothing is being started there that would be worth waiting for.
    """
    if settings.kind == "external":
        cluster = open_broker(settings, directory)
        cluster.start(min(deadline_s, EXTERNAL_S))
        yield cluster.bootstrap
        return
    with Readers(directory) as readers:
        with readers.alone(deadline_s):
            address, started = _found_or_started(settings, directory, deadline_s)
        try:
            yield address
        finally:
            if started is not None:
                readers.last(LAST_S)
                started.stop()


def _found_or_started(settings: BrokerSettings, directory: Path, deadline_s: float) -> tuple[str, Broker | None]:
    """The address of a directory's local broker, and the broker where it had to be started; it is lent then."""
    endpoint = find_endpoint(directory)
    if endpoint is not None:
        return endpoint.bootstrap, None
    broker = open_broker(settings, directory)
    try:
        broker.start(deadline_s)
    except BrokerError:
        # A run that was just starting its own broker has it up by now.
        endpoint = find_endpoint(directory)
        if endpoint is None:
            raise
        return endpoint.bootstrap, None
    if isinstance(broker, LocalBroker):
        broker.lend()
    return broker.bootstrap, broker
