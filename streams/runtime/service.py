"""A service process from start to exit: uvloop, signals, one TaskGroup, health over HTTP, an exit code.

SIGTERM or SIGINT: take no more records, drain within the budget, commit, exit 0 (at once while the service starts). A
second one: abort. Any task's error ends the process with exit code 1 and one clear last line (2 where the user's
configuration is at fault, 75 where the cause lies outside: no room on a disk, no broker); the supervisor restarts it.
"""

import asyncio
import logging
import signal
import sys
from collections.abc import Awaitable, Callable

import uvloop

from schemas import EachpromptError
from schemas.services import SERVICES
from streams import faults
from streams.blobs.store import BlobStore
from streams.cancellation import spawn
from streams.context import RunContext
from streams.errors import ConfigurationError
from streams.log.clients import Log, LogSettings
from streams.runtime.client_logs import ThinOut
from streams.runtime.gc_tuning import collect_rarely
from streams.runtime.health import health_server
from streams.runtime.service_context import ServiceContext
from streams.runtime.transient import is_outside
from streams.telemetry import tracing

logger = logging.getLogger(__name__)

Main = Callable[[ServiceContext], Awaitable[None]]

EXIT_OK, EXIT_FAILED, EXIT_CONFIGURATION = 0, 1, 2

EXIT_OUTSIDE = 75
"""EX_TEMPFAIL of sysexits.h: what the service needs is not available; start it again later."""


def run_service(name: str, context: RunContext, main: Main) -> int:
    """Run `main` until it returns, the process is asked to stop, or something fails. The exit code."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )
    for client in ("aiokafka", "kafka"):
        logging.getLogger(client).setLevel(logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.addFilter(ThinOut())
    faults.enter(name)
    if name in SERVICES and not SERVICES[name].uses_torch:
        collect_rarely()
    provider = tracing.configure(name, context.ordinal, context.run, context.directory, context.otlp_endpoint)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve(name, context, main))
    except asyncio.CancelledError:
        logger.error("%s: aborted", name)
        return EXIT_FAILED
    except Exception as raised:  # the service's boundary: whatever it was becomes one last line and an exit code
        error = _first(raised)
        if isinstance(error, ConfigurationError):
            logger.error("%s: %s", name, error)
            return EXIT_CONFIGURATION
        if not isinstance(error, EachpromptError):
            logger.error("%s failed", name, exc_info=error)
        logger.error("%s: %s: %s", name, type(error).__name__, error)
        return EXIT_OUTSIDE if is_outside(error) else EXIT_FAILED
    finally:
        provider.shutdown()


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _serve(name: str, context: RunContext, main: Main) -> int:
    settings = LogSettings(context.bootstrap, context.run, context.partitions)
    log = Log(settings, client_id=f"{name}-{context.ordinal}")
    async with asyncio.TaskGroup() as tasks:
        service = ServiceContext(name, context, log, BlobStore(context.blob_uri), tasks)
        async with health_server(service) as port:
            logger.info("%s-%d serves run %s, health on port %d", name, context.ordinal, context.run, port)
            working = spawn(_work(service, main), name, tasks)
            _handle_signals(service, working)
            # Not awaited: a cancelled start must end the service cleanly, and any error reaches the TaskGroup itself.
            await asyncio.wait([working])
        service.cancel_spawned()
    logger.info("%s-%d is done", name, context.ordinal)
    return EXIT_FAILED if service.aborted else EXIT_OK


async def _work(service: ServiceContext, main: Main) -> None:
    await main(service)


def _handle_signals(service: ServiceContext, working: asyncio.Task[None]) -> None:
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if service.stopping.is_set():
            logger.warning("%s: second signal, aborting", service.name)
            service.aborted = True
            working.cancel()
        elif not service.is_ready:
            logger.info("%s: asked to stop while starting", service.name)
            service.stopping.set()
            working.cancel()
        else:
            logger.info("%s: asked to stop, draining within %g s", service.name, service.run_context.drain_s)
            service.stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
