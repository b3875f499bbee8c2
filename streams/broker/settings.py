"""The user's settings of the broker."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from streams.broker.base import BrokerConfigurationError

Kind = Literal["auto", "kafka", "embedded", "external"]
KINDS: tuple[Kind, ...] = ("auto", "kafka", "embedded", "external")

MIB = 1024 * 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class BrokerSettings:
    """Which broker a run uses. Raises `BrokerConfigurationError` for a value that is not allowed."""

    kind: Kind = "auto"
    """`kafka` and `embedded` run on this machine, `external` is a cluster that somebody else runs; `auto` is `kafka`
    where Java 17+ and its jars are there, else `embedded`."""
    bootstrap_servers: str = ""
    """`host:port[,host:port...]` of the cluster; only for `external`."""
    ephemeral: bool = False
    """Says that the run's topics may be lost; the embedded broker refuses to start without it."""
    port: int = 0
    """Port on 127.0.0.1 for local brokers. 0 is a free one, which a run directory keeps over restarts."""
    heap_mib: int = 512
    """Java heap of Kafka in MiB."""
    message_max_bytes: int = 64 * MIB
    """Largest record batch that Kafka takes, in bytes."""
    java: str = "java"
    """The Java program, by name or path."""
    jars: Path | None = None
    """Directory of Kafka's jars; None is EACHPROMPT_KAFKA_JARS or the place where `make setup` puts them."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise BrokerConfigurationError(f"broker.kind is {self.kind!r}; allowed are {', '.join(KINDS)}")
        if not 0 <= self.port <= 65535:
            raise BrokerConfigurationError(f"broker.port is {self.port}; allowed are 0 (a free port) to 65535")
        if self.heap_mib < 128:
            raise BrokerConfigurationError(f"broker.heap_mib is {self.heap_mib}; at least 128 MiB are needed")
        if not MIB <= self.message_max_bytes <= 1024 * MIB:
            raise BrokerConfigurationError(
                f"broker.message_max_bytes is {self.message_max_bytes}; allowed are {MIB} to {1024 * MIB} bytes"
            )
        if self.kind == "external" and not self.bootstrap_servers:
            raise BrokerConfigurationError(
                "broker.kind 'external' needs broker.bootstrap_servers, as host:port[,host:port...]"
            )
        if self.kind != "external" and self.bootstrap_servers:
            raise BrokerConfigurationError(
                f"broker.bootstrap_servers is {self.bootstrap_servers!r} but broker.kind is {self.kind!r}; "
                "only 'external' takes it"
            )
