"""Liveness, readiness and status over HTTP, on a port of the system's choice that is written to the run directory."""

import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

from streams.scope import Scope


def health_file(directory: Path, name: str, ordinal: int, replicas: int) -> Path:
    """`<dir>/health/<service>[-n].json`; the number is there where the service has several instances."""
    return directory / "health" / (f"{name}-{ordinal}.json" if replicas > 1 else f"{name}.json")


def status_of(scope: Scope) -> dict[str, object]:
    """What `/status` answers."""
    return {
        "service": scope.name,
        "ordinal": scope.context.ordinal,
        "pid": os.getpid(),
        "ready": scope.is_ready,
        "stopping": scope.stopping.is_set(),
        "started_s": scope.started_s,
        "waits": scope.waits(time.time()),
        "gauges": dict(scope.gauges),
    }


@asynccontextmanager
async def health_server(scope: Scope) -> AsyncIterator[int]:
    """Serve `/live`, `/ready` and `/status` on loopback while the block lasts; yields the port."""

    async def live(_: web.Request) -> web.Response:
        return web.Response(text="live\n")

    async def ready(_: web.Request) -> web.Response:
        return web.Response(text="ready\n") if scope.is_ready else web.Response(status=503, text="not ready\n")

    async def status(_: web.Request) -> web.Response:
        return web.json_response(status_of(scope))

    application = web.Application()
    application.add_routes([web.get("/live", live), web.get("/ready", ready), web.get("/status", status)])
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    path = health_file(scope.context.directory, scope.name, scope.context.ordinal, scope.context.replicas)
    try:
        await site.start()
        port = int(runner.addresses[0][1])
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps({"port": port, "pid": os.getpid()}))
        temporary.replace(path)
        yield port
    finally:
        path.unlink(missing_ok=True)
        await runner.cleanup()
