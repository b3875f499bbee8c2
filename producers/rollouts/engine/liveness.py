"""Whether an engine is alive: seen the moment one of its processes ends, and whenever a call is not answered."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from producers.rollouts.engine.errors import EngineDied

_T = TypeVar("_T")


class Liveness:
    """The liveness of one engine: not started, alive, failed. `died` is set when it ends, whatever the reason.

    vLLM fails the requests in flight of a dead engine core, and leaves control calls waiting indefinitely.
    """

    def __init__(self, call_timeout_s: float) -> None:
        self.failure: str | None = "has not been started"
        self.died = asyncio.Event()
        self._call_timeout_s = call_timeout_s
        self._errored: Callable[[], bool] = lambda: False
        self._descriptors: list[int] = []

    def begin(self, pids: Iterable[int], errored: Callable[[], bool]) -> None:
        """The engine is up: watch its processes, and ask `errored` what vLLM thinks."""
        self.failure = None
        self._errored = errored
        for pid in pids:
            try:
                descriptor = os.pidfd_open(pid)
            except ProcessLookupError:
                self.fail("died")
                continue
            self._descriptors.append(descriptor)
            asyncio.get_running_loop().add_reader(descriptor, self._ended)

    def fail(self, failure: str) -> None:
        """It is dead from now on; the first reason stays."""
        self.failure = self.failure or failure
        self.died.set()

    def stopped(self) -> None:
        """It was stopped; ends every call that waits for it."""
        self._unwatch()
        self.failure = "was stopped"
        self.died.set()

    def check(self) -> None:
        """Raises `EngineDied` unless it is alive."""
        if self.failure is None and self._errored():
            self.fail("died")
        if self.failure is not None:
            raise EngineDied(f"the engine {self.failure}")

    async def call(self, what: str, answer: Awaitable[_T]) -> _T:
        """The answer to a control call that waits `what`. Raises `EngineDied` when none comes."""
        from vllm.v1.engine.exceptions import EngineDeadError

        answering = asyncio.ensure_future(answer)
        dying = asyncio.ensure_future(self.died.wait())
        try:
            await asyncio.wait([answering, dying], timeout=self._call_timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                return answering.result()
            if not dying.done():
                self.fail(f"did not answer within {self._call_timeout_s:g} s")
        except EngineDeadError as error:
            self.fail("died")
            raise EngineDied(f"the engine {self.failure} (waited {what})") from error
        finally:
            answering.cancel()
            dying.cancel()
        raise EngineDied(f"the engine {self.failure} (waited {what})")

    def _ended(self) -> None:
        self._unwatch()
        self.fail("died")

    def _unwatch(self) -> None:
        for descriptor in self._descriptors:
            asyncio.get_running_loop().remove_reader(descriptor)
            os.close(descriptor)
        self._descriptors.clear()
