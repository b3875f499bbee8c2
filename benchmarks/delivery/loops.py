"""How long the callbacks of an event loop take, told apart from what the machine does to the process.

A task that wants to run every millisecond notes between two of its runs: the loop thread's own CPU time, which bounds
that of any one callback in between; by how much it came late; and how long the thread was ready to run and another
had the processor (`schedstat` of Linux). Late without having computed and without having waited for a processor means
that another thread held the interpreter's lock.
"""

import asyncio
import time
from io import RawIOBase
from pathlib import Path
from typing import Final

import msgspec

from streams.runtime.service_context import ServiceContext

_TICK_S: Final = 0.001
_WRITTEN_EVERY_S: Final = 0.25


class Loop(msgspec.Struct, frozen=True):
    """The worst between two ticks, ms: own CPU time, coming late, and late less the wait for a processor."""

    ticks: int
    cpu_ms: float
    late_ms: float
    late_by_itself_ms: float


class Watch:
    """Watches the loop in which `run` is a task."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget what was seen."""
        self._ticks = 0
        self._cpu_s = self._late_s = self._own_s = 0.0

    @property
    def worst(self) -> Loop:
        """Since it was cleared."""
        return Loop(self._ticks, 1e3 * self._cpu_s, 1e3 * self._late_s, 1e3 * self._own_s)

    async def run(self) -> None:
        """Until cancelled."""
        with _schedstat() as schedstat:
            while True:
                before_s, cpu_s, waited_s = time.monotonic(), time.thread_time(), _waited_s(schedstat)
                await asyncio.sleep(_TICK_S)
                late_s = time.monotonic() - before_s - _TICK_S
                self._ticks += 1
                self._cpu_s = max(self._cpu_s, time.thread_time() - cpu_s)
                self._late_s = max(self._late_s, late_s)
                self._own_s = max(self._own_s, late_s - (_waited_s(schedstat) - waited_s))


def _schedstat() -> RawIOBase:
    return Path("/proc/thread-self/schedstat").open("rb", buffering=0)


def _waited_s(schedstat: RawIOBase) -> float:
    schedstat.seek(0)
    return int((schedstat.read() or b"").split()[1]) / 1e9


async def watched(service: ServiceContext, name: str) -> None:
    """Watches the service's loop once it is ready, and writes `loops/<name>.json` every quarter of a second."""
    watch = Watch()
    watching = asyncio.ensure_future(watch.run())
    path = Path(service.run_context.directory) / "loops" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    try:
        while True:
            if not service.is_ready:
                watch.clear()
            await asyncio.sleep(_WRITTEN_EVERY_S)
            path.write_bytes(msgspec.json.encode(watch.worst))
    finally:
        watching.cancel()


async def idle(service: ServiceContext) -> None:
    """The control: a service that does nothing."""
    service.ready()
    await service.stopping.wait()
