"""A thread for blocking work whose order matters: the collectives of one process group must run in one thread."""

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


class SerialThread:
    """Runs the functions it is given one after the other, in a daemon thread.

    A ThreadPoolExecutor's threads are not daemons: they would keep a failing process alive until a collective that
    waits for a dead rank times out.
    """

    def __init__(self, name: str) -> None:
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    async def run(self, work: Callable[[], _T]) -> _T:
        """Run `work` and return its result or raise its error. Cancelling the caller does not interrupt `work`."""
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[_T] = loop.create_future()

        def settle(result: _T | None, error: BaseException | None) -> None:
            if outcome.cancelled():
                return
            if error is None:
                outcome.set_result(result)  # type: ignore[arg-type]
            else:
                outcome.set_exception(error)

        def job() -> None:
            result, raised = None, None
            try:
                result = work()
            except BaseException as error:
                raised = error
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, result, raised)

        self._work.put(job)
        return await outcome

    def close(self) -> None:
        """End the thread once it has run what is queued. Does not wait."""
        self._work.put(None)

    def _run(self) -> None:
        while (job := self._work.get()) is not None:
            job()
