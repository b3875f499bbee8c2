"""Ends a process whose event loop stands still: nothing that runs on the loop could notice that."""

import asyncio
import faulthandler
import logging
import os
import threading
from collections.abc import Callable
from typing import Final

logger = logging.getLogger(__name__)

_TICKS: Final = 12
_EXIT_FAILED: Final = 1


def end_process(why: str) -> None:
    """Log why, and where every thread stands; then exit at once, without waiting for any of them."""
    logger.critical("%s", why)
    faulthandler.dump_traceback()
    os._exit(_EXIT_FAILED)


class LoopWatchdog:
    """A thread that ends the process once the loop was silent for `limit_s` seconds; `what` says what it was doing.

    The thread counts its own ticks, so a process that was stopped and resumed, or got no CPU, does not count as one
    that stands still.
    """

    def __init__(self, what: Callable[[], str], limit_s: float) -> None:
        self._what = what
        self._tick_s = limit_s / _TICKS
        self._limit_s = limit_s
        self._beats = 0
        self._over = threading.Event()

    async def beat(self) -> None:
        """Show that the loop runs, until cancelled."""
        thread = threading.Thread(target=self._watch, name="loop watchdog", daemon=True)
        thread.start()
        try:
            while True:
                self._beats += 1
                await asyncio.sleep(self._tick_s / 2)
        finally:
            self._over.set()

    def _watch(self) -> None:
        seen, silent = 0, 0
        while not self._over.wait(self._tick_s):
            seen, silent = self._beats, silent + 1 if self._beats == seen else 0
            if silent >= _TICKS:
                end_process(f"{self._what()}: nothing else ran for {self._limit_s:g} s")
                return
