"""Waiting until a broker serves, asked in the wire protocol itself.

A TCP connection proves little: Kafka accepts connections before it answers, and the first look-up of a group or
transaction coordinator on a fresh broker fails for about a second. Three plain requests say more than a client library
would and cost nothing to import. Message layouts: https://kafka.apache.org/protocol
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable

from streams.broker.base import BrokerConfigurationError, BrokerError

_API_VERSIONS = 18
_FIND_COORDINATOR = 10
_COORDINATORS = {"group": 0, "transaction": 1}
_ANSWER_MAX_BYTES = 1 << 20
_POLL_S = 0.03

SAY_AFTER_S = 4.0
SAY_EVERY_S = 10.0
"""A person who waits for a broker that is not there learns it within five seconds."""


def parse_bootstrap(servers: str) -> list[tuple[str, int]]:
    """`"a:1,b:2"` → `[("a", 1), ("b", 2)]`. Raises `BrokerConfigurationError` naming a wrong entry."""
    addresses = []
    for entry in servers.split(","):
        host, colon, port = entry.strip().rpartition(":")
        if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise BrokerConfigurationError(f"bootstrap server {entry.strip()!r} is not host:port")
        addresses.append((host.strip("[]"), int(port)))
    return addresses


def wait_ready(
    bootstrap: str, deadline_s: float, pause: Callable[[float], object], say: Callable[[str], object] | None = None
) -> None:
    """Blocks until one of the servers answers ApiVersions and knows a group and a transaction coordinator.

    `pause(seconds)` is called between attempts; it may raise to give up early, say because the process died. Raises
    `BrokerError` at the deadline, naming the address and what it was waiting for. `say` is called with a sentence after
    SAY_AFTER_S seconds and then every SAY_EVERY_S.
    """
    addresses = parse_bootstrap(bootstrap)
    began_s = time.monotonic()
    deadline, say_s = began_s + deadline_s, began_s + SAY_AFTER_S
    while True:
        obstacles = [_obstacle(host, port, deadline) for host, port in addresses]
        if None in obstacles:
            return
        if time.monotonic() >= deadline:
            raise BrokerError(f"broker at {bootstrap} is not ready after {deadline_s:g} s: {obstacles[0]}")
        if say is not None and (now_s := time.monotonic()) >= say_s:
            say_s = now_s + SAY_EVERY_S
            say(f"the broker at {bootstrap} is not reachable since {now_s - began_s:.0f} s: {obstacles[0]}")
        pause(_POLL_S)


def _obstacle(host: str, port: int, deadline: float) -> str | None:
    """What still stands between this server and readiness, or None."""
    waiting_for = "a connection"
    try:
        patience_s = min(5.0, max(0.1, deadline - time.monotonic()))
        with socket.create_connection((host, port), timeout=patience_s) as connection:
            waiting_for = "an answer to ApiVersions"
            _ask(connection, _API_VERSIONS, 0, b"")
            for name, key_type in _COORDINATORS.items():
                waiting_for = f"the {name} coordinator"
                key = b"eachprompt-ready"
                body = struct.pack(">h", len(key)) + key + struct.pack(">b", key_type)
                error, message = _coordinator_error(_ask(connection, _FIND_COORDINATOR, 1, body))
                if error != 0:
                    return f"waiting for {waiting_for} (error {error}: {message})"
    except (OSError, struct.error) as error:
        return f"waiting for {waiting_for} of {host}:{port} ({error})"
    return None


def _ask(connection: socket.socket, api_key: int, version: int, body: bytes) -> bytes:
    """Sends one request with a version-1 header and returns the answer after its correlation id."""
    message = struct.pack(">hhih", api_key, version, 0, -1) + body
    connection.sendall(struct.pack(">i", len(message)) + message)
    (size,) = struct.unpack(">i", _receive(connection, 4))
    if not 4 <= size <= _ANSWER_MAX_BYTES:
        raise OSError(f"an answer of {size} bytes is not Kafka's protocol")
    return _receive(connection, size)[4:]


def _receive(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        if not (part := connection.recv(size - len(data))):
            raise OSError("the server closed the connection")
        data += part
    return bytes(data)


def _coordinator_error(answer: bytes) -> tuple[int, str]:
    """FindCoordinatorResponse v1: throttle time (i4), error code (i2), error message (nullable string), ..."""
    error, size = struct.unpack_from(">hh", answer, 4)
    return error, answer[8 : 8 + max(0, size)].decode(errors="replace")
