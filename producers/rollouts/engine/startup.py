"""A start of vLLM that can be given up at any moment of it, its imports included."""

import asyncio
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from producers.rollouts.engine.errors import EngineError, EngineStartError, in_one_line
from producers.rollouts.engine.process import EngineProcesses, launch
from producers.rollouts.engine.reason import mark, said_since
from producers.rollouts.engine.settings import EngineSettings

_KILL_EVERY_S = 0.25


class _GivenUp(BaseException):
    """Not an Exception: modules that import what they can do without would pass over it."""


class _Interruption(MetaPathFinder):
    """Ends the imports of one thread, between two modules, once it was given up: vLLM's take 10 s and more."""

    def __init__(self, given_up: threading.Event) -> None:
        self._given_up = given_up
        self._thread = threading.get_ident()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Finds nothing."""
        if self._given_up.is_set() and threading.get_ident() == self._thread:
            raise _GivenUp
        return None


class EngineStart:
    """Runs `launch` in a daemon thread, which cannot hold up the end of the process."""

    def __init__(self, settings: EngineSettings, processes: EngineProcesses) -> None:
        self._settings = settings
        self._processes = processes
        self._marked = mark()
        self._given_up = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._llm: Any = None
        self._error: BaseException | None = None
        threading.Thread(target=self._run, name="engine launch", daemon=True).start()

    @property
    def has_ended(self) -> bool:
        """Whether its thread starts nothing any more."""
        return self._ended.is_set()

    async def llm(self) -> Any:
        """The started `AsyncLLM`. EngineStartError: the deadline passed. Raises whatever vLLM raised."""
        try:
            async with asyncio.timeout(self._settings.start_timeout_s):
                await self._ended.wait()
        except TimeoutError as error:
            raise EngineStartError(f"the engine did not start within {self._settings.start_timeout_s:g} s") from error
        if isinstance(self._error, EngineError):
            raise self._error
        if self._error is not None:
            said = said_since(self._marked) or in_one_line(self._error)
            raise EngineStartError(f"the engine did not start: {said}") from self._error
        # Handed over, not shared: vLLM cleans up in finalizers, which must run long before the interpreter ends.
        llm, self._llm = self._llm, None
        return llm

    async def give_up(self) -> Any | None:
        """Kill what it starts until it starts nothing more, for `stop_timeout_s` at most; what is left to shut down."""
        self._given_up.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.stop_timeout_s):
                while not self._ended.is_set():
                    await asyncio.to_thread(self._processes.kill)
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_KILL_EVERY_S):
                            await self._ended.wait()
        llm, self._llm = self._llm, None
        return llm

    def _run(self) -> None:
        finder = _Interruption(self._given_up)
        sys.meta_path.insert(0, finder)
        try:
            self._llm = launch(self._settings, self._processes.mark)
        except BaseException as error:
            self._error = error
        finally:
            sys.meta_path.remove(finder)
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._ended.set)
