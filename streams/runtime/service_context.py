"""What a running service holds: its log, blobs, waits, gauges and tasks."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from streams.blobs.store import BlobStore
from streams.cancellation import spawn
from streams.context import RunContext
from streams.errors import DeadlineError
from streams.log.clients import Log
from streams.runtime.progress import Progress


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
        self._loops: list[Progress] = []

    def ready(self) -> None:
        """The service does its work from now on: `/ready` answers 200."""
        self.is_ready = True

    @contextmanager
    def loop(self, what: str) -> Iterator[Progress]:
        """A loop that has to come round every few seconds while the block lasts, or `/ready` answers 503."""
        loop = Progress(what)
        self._loops.append(loop)
        try:
            yield loop
        finally:
            self._loops.remove(loop)

    def silent(self) -> list[str]:
        """The loops that have not come round, and for how long; empty where all is well."""
        return [f"{loop.what}: nothing for {loop.silent_s():.0f} s" for loop in self._loops if loop.silent_s()]

    def gauge(self, name: str, value: float) -> None:
        """Set a figure that `/status` shows."""
        self.gauges[name] = value

    def spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run a task beside `main`; its error ends the service, and the end of `main` ends it."""
        task = spawn(coroutine, name, self._tasks)
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
        return self.silent() + named + [line for report in self._reporters for line in report()]

    async def until_stopped(self, timeout_s: float) -> bool:
        """Sleep up to `timeout_s`; True at once when the service is asked to stop."""
        try:
            async with asyncio.timeout(timeout_s):
                await self.stopping.wait()
        except TimeoutError:
            return False
        return True
