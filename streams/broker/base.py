"""The interface behind which every kind of broker stands."""

from __future__ import annotations

import abc
from types import TracebackType
from typing import ClassVar, Literal, Self

from streams.errors import ConfigurationError, StreamsError


class BrokerError(StreamsError):
    """A broker could not be configured, started, reached or stopped; the message names which and why."""


class BrokerConfigurationError(BrokerError, ConfigurationError):
    """The broker that was asked for cannot be: a wrong value, or one that does not fit the run directory."""


class Broker(abc.ABC):
    """A Kafka-compatible broker that a run talks to.

        with open_broker(BrokerSettings(), Path("runs/one")) as broker:
            producer = AIOKafkaProducer(bootstrap_servers=broker.bootstrap, ...)

    `start` after `stop`, or after the broker died, starts it again on the same data and the same port. Methods block;
    call them through `asyncio.to_thread` from a coroutine.
    """

    kind: ClassVar[Literal["kafka", "embedded", "external"]]

    @property
    @abc.abstractmethod
    def bootstrap(self) -> str:
        """`host:port[,host:port...]` for clients. Raises `BrokerError` before the first start of a local broker."""

    @abc.abstractmethod
    def start(self, deadline_s: float = 60.0) -> None:
        """Starts the broker if it is a local one, and waits until it serves clients, groups and transactions.

        Raises `BrokerError` at the deadline, naming what was waited for; a broker that was started is stopped then.
        """

    @abc.abstractmethod
    def stop(self, deadline_s: float = 10.0) -> None:
        """Stops a local broker: politely until the deadline, then with SIGKILL. Does nothing if it does not run."""

    @abc.abstractmethod
    def alive(self) -> bool:
        """Whether the process (local) or a port (external) is there. It says nothing about readiness."""

    @property
    def exit_code(self) -> int | None:
        """How the process of a local broker ended, a signal as a negative number; None where none has."""
        return None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
