"""A cancellation that nobody asked for is an error.

asyncio takes a task that ends by CancelledError for one that was cancelled on purpose: a TaskGroup drops it
silently, and whoever awaits it ends in turn. Code that cancels tasks of its own and awaits them (aiokafka 0.14.0 in
`stop()`, and in a call whose client was given up after a session ran out) raises just that into its caller. A service
then stops reading and stays ready, or ends with exit code 0 and no cause. `Task.cancelling()` tells the two apart: it
counts the requests to cancel this very task, time-outs of `asyncio.timeout` included. (Python 3.11 leaves one standing
in a task that continues after a TaskGroup of its own has failed. Here such an error ends the service.)
"""

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar

from streams.errors import StreamsError

_T = TypeVar("_T")


class StrayCancellationError(StreamsError):
    """Something that was awaited was cancelled, and the task that awaited it was not."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} was cancelled from within, by nobody who had asked for it")


async def owned(awaitable: Awaitable[_T], what: str) -> _T:
    """Await it. StrayCancellationError: it ended by CancelledError though the awaiting task was not cancelled."""
    try:
        return await awaitable
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise StrayCancellationError(what) from error


def spawn(coroutine: Coroutine[Any, Any, _T], name: str, tasks: asyncio.TaskGroup | None = None) -> asyncio.Task[_T]:
    """A task, of `tasks` where given, that ends by CancelledError only where somebody cancels the task itself."""
    task = (tasks or asyncio).create_task(owned(coroutine, name), name=name)
    # A task that is cancelled before its first step never awaits what it was given.
    task.add_done_callback(lambda _: coroutine.close())
    return task
