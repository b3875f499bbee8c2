"""Following a run while it goes: reads its topics, shows where it is, and knows when it is done."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Final

from analysis.errors import AnalysisError
from analysis.history.history import History
from analysis.history.run_log import RunLog, backlog, main_lag
from analysis.views.live_figures import Snapshot, snapshot
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


class Watcher:
    """Follows the topics into `history` and shows a snapshot every second; the run is over after `steps` steps."""

    def __init__(self, log: RunLog, partitions: int, steps: int, show: Callable[[Snapshot], None]) -> None:
        self.history = History()
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
        closing = asyncio.Event()
        # Ended by an event, not by cancelling: its thread cannot be cancelled and would wait for a stopped broker.
        measuring = asyncio.create_task(self._measure_lag(closing), name="lag")
        tasks = [
            asyncio.create_task(self._follow(held_back, done), name="follow"),
            asyncio.create_task(self._show_regularly(), name="show"),
        ]
        ended = asyncio.create_task(done.wait())
        try:
            everyone = {*tasks, measuring, ended}
            finished, _ = await asyncio.wait(everyone, timeout=deadline_s, return_when=asyncio.FIRST_COMPLETED)
            for task in finished:
                task.result()
            if not done.is_set():
                raise AnalysisError(f"waited {deadline_s:g} s for {self._missing(held_back)}")
        finally:
            for task in (*tasks, ended):
                task.cancel()
            closing.set()
            await asyncio.gather(*tasks, measuring, ended, return_exceptions=True)
        self._show(self._snapshot())
        return self.history

    def _snapshot(self) -> Snapshot:
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

    async def _follow(self, held_back: int, done: asyncio.Event) -> None:
        """Reads the topics; resumes at its position when the broker was away."""
        log = Log(LogSettings(self._log.bootstrap, self._log.run, self._partitions), client_id="watch")
        positions: dict[tuple[str, int], int | None] = {
            (topic, partition): None for topic in TOPICS for partition in log.partitions(topic)
        }
        while True:
            try:
                async with Reader(log, positions) as reader:
                    while True:
                        for record in await reader.poll(_POLL_S):
                            positions[record.topic, record.partition] = record.offset + 1
                            self._take(record.value, record.ref)
                        if self._missing(held_back) is None:
                            done.set()
                            return
            except StreamsError as error:
                logger.info("the log cannot be followed: %s; trying again", error)
                await asyncio.sleep(_AGAIN_S)

    def _take(self, value: bytes, ref: Ref) -> None:
        try:
            self.history.add(decode(value), ref)
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
