"""A cluster that somebody else runs."""

from __future__ import annotations

import logging
import socket
import threading
from typing import ClassVar, Literal

from streams.broker.base import Broker, BrokerError
from streams.broker.ready import parse_bootstrap, wait_ready
from streams.broker.settings import BrokerSettings

_log = logging.getLogger(__name__)


class ExternalBroker(Broker):
    """Nothing is started or stopped; `start` waits until the cluster serves, and names it when it does not."""

    kind: ClassVar[Literal["external"]] = "external"

    def __init__(self, settings: BrokerSettings) -> None:
        self._addresses = parse_bootstrap(settings.bootstrap_servers)
        self._bootstrap = settings.bootstrap_servers
        self._stopped = threading.Event()

    @property
    def bootstrap(self) -> str:
        return self._bootstrap

    def start(self, deadline_s: float = 60.0) -> None:
        self._stopped.clear()
        try:
            wait_ready(self._bootstrap, deadline_s, self._pause, _log.warning)
        except BrokerError as error:
            raise BrokerError(f"{error}; is broker.bootstrap_servers right, and is the cluster up?") from None

    def stop(self, deadline_s: float = 10.0) -> None:
        """Ends a `start` that still waits; the cluster is not ours to stop."""
        self._stopped.set()

    def _pause(self, seconds: float) -> None:
        if self._stopped.wait(seconds):
            raise BrokerError(f"waiting for the broker at {self._bootstrap} was given up: it was stopped")

    def alive(self) -> bool:
        for address in self._addresses:
            try:
                with socket.create_connection(address, timeout=1):
                    return True
            except OSError:
                continue
        return False
