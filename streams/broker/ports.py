"""TCP ports of this machine's loopback interface."""

from __future__ import annotations

import random
import socket
from pathlib import Path

from streams.broker.base import BrokerError

HOST = "127.0.0.1"
_EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def is_free(port: int) -> bool:
    """Whether a server could listen on this port of 127.0.0.1 right now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def free_port() -> int:
    """A free port below the range from which the kernel takes the source ports of connections.

    Inside that range a client that retries a broker which is down can be given the very port it dials, connects to
    itself, and so keeps the broker from ever listening there again.
    """
    try:
        first_ephemeral = int(_EPHEMERAL_RANGE.read_text().split()[0])
    except OSError:
        first_ephemeral = 32768
    last = first_ephemeral - 1 if first_ephemeral > 12_000 else 65_535
    chooser = random.SystemRandom()
    for _ in range(200):
        port = chooser.randint(10_000, last)
        if is_free(port):
            return port
    raise BrokerError(f"no free port was found on {HOST} between 10000 and {last}")
