"""Liveness, readiness and status over HTTP, on a port of the system's choice that is written to the run directory.

Three answers to GET on loopback, by asyncio's own streams: a web framework would be a quarter of what a light service
loads at its start, and so of the time for which it is missing after a crash.
"""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from streams.runtime.service_context import ServiceContext

_REQUEST_S: Final = 5.0
"""A client that does not say what it wants, or does not take its answer, is hung up on after this long."""

_REASONS: Final = {200: "OK", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}


def health_file(directory: Path, name: str, ordinal: int, replicas: int) -> Path:
    """`<dir>/health/<service>[-n].json`; the number is there where the service has several instances."""
    return directory / "health" / (f"{name}-{ordinal}.json" if replicas > 1 else f"{name}.json")


def status_of(service: ServiceContext) -> dict[str, object]:
    """What `/status` answers."""
    return {
        "service": service.name,
        "ordinal": service.run_context.ordinal,
        "pid": os.getpid(),
        "ready": service.is_ready,
        "silent": service.silent(),
        "stopping": service.stopping.is_set(),
        "started_s": service.started_s,
        "waits": service.waits(time.time()),
        "gauges": dict(service.gauges),
    }


@asynccontextmanager
async def health_server(service: ServiceContext) -> AsyncIterator[int]:
    """Serve `/live`, `/ready` and `/status` on loopback while the block lasts; yields the port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Whoever asked has gone or sends nonsense: that is not this service's trouble.
        with suppress(OSError, TimeoutError, ValueError):
            async with asyncio.timeout(_REQUEST_S):
                line = await reader.readline()
                while await reader.readline() not in (b"\r\n", b"\n", b""):
                    pass
                writer.write(_answer(service, line.decode("latin-1")))
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    path = health_file(
        service.run_context.directory, service.name, service.run_context.ordinal, service.run_context.replicas
    )
    try:
        port = int(server.sockets[0].getsockname()[1])
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps({"port": port, "pid": os.getpid()}))
        temporary.replace(path)
        yield port
    finally:
        path.unlink(missing_ok=True)
        server.close()
        await server.wait_closed()


def _answer(service: ServiceContext, request_line: str) -> bytes:
    method, _, rest = request_line.partition(" ")
    code, body, kind = 200, "", "text/plain"
    match rest.partition(" ")[0].partition("?")[0]:
        case _ if method not in ("GET", "HEAD"):
            code, body = 405, "only GET\n"
        case "/live":
            body = "live\n"
        case "/ready":
            silent = service.silent()
            ready = service.is_ready and not silent
            code, body = (200, "ready\n") if ready else (503, "\n".join(silent or ["not ready"]) + "\n")
        case "/status":
            body, kind = json.dumps(status_of(service)), "application/json"
        case _:
            code, body = 404, "only /live, /ready and /status\n"
    payload = body.encode()
    head = (
        f"HTTP/1.1 {code} {_REASONS[code]}\r\nContent-Type: {kind}; charset=utf-8\r\n"
        f"Content-Length: {len(payload)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (b"" if method == "HEAD" else payload)
