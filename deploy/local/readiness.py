"""Readiness probe: asks a starting service for `/ready`, on the port in its health file, until it is."""

import asyncio
import json
from pathlib import Path
from typing import Final

_ASK_EVERY_S: Final = 0.25
_ANSWER_S: Final = 2.0


async def until_ready(health: Path, pid: int) -> None:
    """Returns once process `pid` reports that it is ready; it has no deadline, so the caller cancels it."""
    while True:
        port = _port_of(health, pid)
        if port is not None and await _is_ready(port):
            return
        await asyncio.sleep(_ASK_EVERY_S)


def _port_of(health: Path, pid: int) -> int | None:
    """The port on which process `pid` answers; None where the file is missing or is its predecessor's."""
    try:
        status = json.loads(health.read_text())
        return int(status["port"]) if status["pid"] == pid else None
    except (OSError, ValueError, KeyError):
        return None


async def _is_ready(port: int) -> bool:
    try:
        async with asyncio.timeout(_ANSWER_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(b"GET /ready HTTP/1.0\r\n\r\n")
                return b" 200 " in await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False
