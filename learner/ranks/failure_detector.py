"""What a rank notices of the others while it does something else: that one has ended, is silent, or is to stop."""

import asyncio
import logging
from contextlib import suppress
from functools import partial
from typing import Final

from learner.errors import RankError
from learner.ranks.group import Ranks
from learner.ranks.lifeline import Lifeline
from learner.ranks.serial_thread import SerialThread
from streams.runtime.service_context import ServiceContext

logger = logging.getLogger(__name__)

_VERDICT_S: Final = 5.0


class FailureDetector:
    """Of one rank. Its errors end the service, whatever collective the other threads wait in."""

    def __init__(self, service: ServiceContext, rank: int, heartbeat_s: float) -> None:
        self._service = service
        self._rank = rank
        self._heartbeat_s = heartbeat_s
        self._pulse = SerialThread("pulse")
        self._lost = asyncio.Event()

    async def watch_peers(self, lifeline: Lifeline, living: asyncio.Task[None] | None) -> None:
        """A rank that is gone takes the others with it at once; one that is to stop has `living` stopped too."""
        end = await lifeline.lost()
        if self._service.stopping.is_set():
            return
        if end.stopping:
            # It was still starting, so nothing was trained in this life that would have to be finished.
            logger.info("learner rank %d was told to stop, and rank %d stops with it", end.rank, self._rank)
            self._service.stopping.set()
            assert living is not None
            living.cancel()
            return
        self._lost.set()
        raise RankError(f"learner rank {end.rank} is gone: its connection has ended (seen by rank {self._rank})")

    async def beat(self, ranks: Ranks) -> None:
        """Signs of life, beside everything else; they also carry one rank's SIGTERM to the others."""
        while True:
            try:
                stopping = await self._pulse.run(partial(ranks.beat, self._service.stopping.is_set()))
            except RankError:
                # On the way out the first rank to leave looks like a dead one; the last agreement has been had.
                if self._service.stopping.is_set():
                    return
                # This error ends the service before the training thread's, which it leaves time for.
                self._lost.set()
                raise
            if stopping:
                self._service.stopping.set()
            await asyncio.sleep(self._heartbeat_s)

    async def verdict(self) -> None:
        """A collective has failed: leave the time to say whose end it was that broke it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_VERDICT_S):
                await self._lost.wait()

    def close(self) -> None:
        """End the heartbeat's thread. Does not wait."""
        self._pulse.close()
