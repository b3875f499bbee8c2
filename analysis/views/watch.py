"""Following a run while it goes: reads its topics, shows where it is, and knows when it is done."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

from analysis.errors import AnalysisError
from analysis.history.history import History
from analysis.history.run_log import RunLog, backlog, main_lag
from analysis.views.live_figures import Snapshot, snapshot
from analysis.views.running_figures import RunningFigures
from schemas import Ref, UndecodableError, decode
from streams.errors import StreamsError
from streams.log.admin import Admin, AdminError
from streams.log.clients import Log, LogSettings
from streams.log.reader import Reader

logger = logging.getLogger(__name__)

TOPICS: Final = ("prompts", "scores", "groups", "batches", "steps", "weights", "applied", "dead-letters")
"""Everything but `rollouts`, whose arrays are large and of which the scores hold what is shown."""

_POLL_S: Final = 0.25
_SHOW_S: Final = 1.0
_LAG_S: Final = 3.0
_AGAIN_S: Final = 1.0
_TAIL: Final = 2000
"""Offsets of each partition that are read back for `RunningFigures`."""


class Watcher:
    """Follows the topics and shows a snapshot every second.

    Either the whole log into `history`, until the run is over after `steps` steps (`until_done`); or its tail into
    `running`, whose memory is bounded, for as long as the caller says (`until`).
    """

    def __init__(
        self,
        log: RunLog,
        partitions: int,
        steps: int,
        show: Callable[[Snapshot], None],
        running: RunningFigures | None = None,
    ) -> None:
        self.history = History()
        self._running = running
        self._log = log
        self._partitions = partitions
        self._steps = steps
        self._show = show
        self._lag: dict[str, int] = {}

    async def until_done(self, held_back: int, deadline_s: float) -> History:
        """Waits until the last step and its held-back round (of `held_back` groups) are on the log.

        AnalysisError: that takes longer than `deadline_s` seconds; its message names how far the run was.
        """
        done = asyncio.Event()
        if not await self._watch(self._follow(lambda: self._missing(held_back) is None, done), done.wait(), deadline_s):
            raise AnalysisError(f"waited {deadline_s:g} s for {self._missing(held_back)}")
        return self.history

    async def until(self, ended: Coroutine[Any, Any, Any]) -> None:
        """Follows until `ended` returns, whose errors are raised."""
        await self._watch(self._follow(lambda: False, asyncio.Event()), ended, None)

    async def _watch(
        self, following: Coroutine[Any, Any, None], ended: Coroutine[Any, Any, Any], deadline_s: float | None
    ) -> bool:
        """Shows what `following` reads until `ended` returns; whether it did within `deadline_s`."""
        closing = asyncio.Event()
        # Ended by an event, not by cancelling: its thread cannot be cancelled and would wait for a stopped broker.
        measuring = asyncio.create_task(self._measure_lag(closing), name="lag")
        tasks = [
            asyncio.create_task(following, name="follow"),
            asyncio.create_task(self._show_regularly(), name="show"),
        ]
        ending = asyncio.create_task(ended)
        try:
            everyone = {*tasks, measuring, ending}
            finished, _ = await asyncio.wait(everyone, timeout=deadline_s, return_when=asyncio.FIRST_COMPLETED)
            for task in finished:
                task.result()
            if not finished:
                return False
            if not ending.done():  # the follower has seen that the run is over, and says so itself
                await ending
        finally:
            for task in (*tasks, ending):
                task.cancel()
            closing.set()
            await asyncio.gather(*tasks, measuring, ending, return_exceptions=True)
        self._show(self._snapshot())
        return True

    def _snapshot(self) -> Snapshot:
        if self._running is not None:
            return self._running.snapshot(now_s=time.time(), steps=self._steps, lag=self._lag)
        return snapshot(self.history, now_s=time.time(), steps=self._steps, lag=self._lag)

    def _missing(self, held_back: int) -> str | None:
        """What the run still lacks, as part of a sentence; None where it is done."""
        steps = self._steps
        if len(self.history.steps) < steps:
            return f"step {steps} (step {len(self.history.steps)} is done)"
        asked = self.history.round_groups(steps)
        closed = sum(group in self.history.closed for group in asked)
        if closed < held_back:
            return f"the held-back round after step {steps} ({closed} of {held_back} groups are measured)"
        return None

    async def _follow(self, over: Callable[[], bool], done: asyncio.Event) -> None:
        """Reads the topics; resumes at its position when the broker was away."""
        log = Log(LogSettings(self._log.bootstrap, self._log.run, self._partitions), client_id="watch")
        positions: dict[tuple[str, int], int | None] = {
            (topic, partition): None for topic in TOPICS for partition in log.partitions(topic)
        }
        while True:
            try:
                async with Reader(log, positions) as reader:
                    if self._running is not None and not any(positions.values()):
                        await _seek_to_tail(reader)
                    while True:
                        for record in await reader.poll(_POLL_S):
                            positions[record.topic, record.partition] = record.offset + 1
                            self._take(record.value, record.ref)
                        if over():
                            done.set()
                            return
            except StreamsError as error:
                logger.info("the log cannot be followed: %s; trying again", error)
                await asyncio.sleep(_AGAIN_S)

    def _take(self, value: bytes, ref: Ref) -> None:
        try:
            (self._running or self.history).add(decode(value), ref)
        except UndecodableError as error:
            logger.info("%s: %s", ref, error)

    async def _show_regularly(self) -> None:
        while True:
            self._show(self._snapshot())
            await asyncio.sleep(_SHOW_S)

    async def _measure_lag(self, closing: asyncio.Event) -> None:
        while not closing.is_set():
            try:
                self._lag = await asyncio.to_thread(self._lag_now)
            except AdminError as error:
                logger.info("the lag cannot be measured: %s", error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LAG_S):
                    await closing.wait()

    def _lag_now(self) -> dict[str, int]:
        with Admin(self._log.bootstrap, deadline_s=_LAG_S) as admin:
            return main_lag(backlog(admin, self._log.run))


async def _seek_to_tail(reader: Reader) -> None:
    ends, starts = await reader.ends(), await reader.starts()
    reader.seek({key: max(starts[key], end - _TAIL) for key, end in ends.items()})
