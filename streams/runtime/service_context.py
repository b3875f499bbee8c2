"""What a running service holds: its log, blobs, waits, gauges and tasks."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from streams.blobs.store import BlobStore
from streams.context import RunContext
from streams.errors import DeadlineError
from streams.log.clients import Log


class ServiceContext:
    """What `main` of a service gets; the service ends by SIGTERM (`stopping`) or by any task's error."""

    def __init__(self, name: str, context: RunContext, log: Log, blobs: BlobStore, tasks: asyncio.TaskGroup) -> None:
        self.name = name
        self.run_context = context
        self.log = log
        self.blobs = blobs
        self.stopping = asyncio.Event()
        self.gauges: dict[str, float] = {}
        self.started_s = time.time()
        self.is_ready = False
        self.aborted = False
        self._spawned: list[asyncio.Task[None]] = []
        self._tasks = tasks
        self._waits: dict[int, tuple[str, float]] = {}
        self._reporters: list[Callable[[], list[str]]] = []

    def ready(self) -> None:
        """The service does its work from now on: `/ready` answers 200."""
        self.is_ready = True

    def gauge(self, name: str, value: float) -> None:
        """Set a figure that `/status` shows."""
        self.gauges[name] = value

    def spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run a task beside `main`; its error ends the service, and the end of `main` ends it."""
        task = self._tasks.create_task(coroutine, name=name)
        self._spawned.append(task)
        return task

    def cancel_spawned(self) -> None:
        """End the tasks beside `main`."""
        for task in self._spawned:
            task.cancel()

    def add_status(self, report: Callable[[], list[str]]) -> None:
        """Have `/status` ask `report` what this service waits for, in sentences."""
        self._reporters.append(report)

    @asynccontextmanager
    async def wait(self, what: str, deadline_s: float) -> AsyncIterator[None]:
        """A named wait: shown by `/status` while it lasts; DeadlineError after `deadline_s`."""
        key = id(object())
        while key in self._waits:
            key += 1
        self._waits[key] = (what, time.time())
        try:
            async with asyncio.timeout(deadline_s):
                yield
        except TimeoutError as error:
            raise DeadlineError(what, deadline_s) from error
        finally:
            del self._waits[key]

    def waits(self, now_s: float) -> list[str]:
        """What this service waits for, since when."""
        named = [f"waits {what} since {now_s - since:.0f} s" for what, since in self._waits.values()]
        return named + [line for report in self._reporters for line in report()]

    async def until_stopped(self, timeout_s: float) -> bool:
        """Sleep up to `timeout_s`; True at once when the service is asked to stop."""
        try:
            async with asyncio.timeout(timeout_s):
                await self.stopping.wait()
        except TimeoutError:
            return False
        return True
