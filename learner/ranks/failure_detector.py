"""A rank's failure detector: another rank has exited, misses its heartbeats, or was asked to stop."""

import asyncio
import logging
from contextlib import suppress
from functools import partial
from typing import Final

from learner.errors import RankError
from learner.ranks.group import RankGroup
from learner.ranks.lifeline import Lifeline
from learner.ranks.serial_thread import SerialThread
from streams.runtime.service_context import ServiceContext

logger = logging.getLogger(__name__)

_EXPLANATION_S: Final = 5.0
"""How long a failed collective waits for the failure detector to name the rank that caused it."""


class FailureDetector:
    """Detects the failure of other ranks for one rank, from closed connections and missed heartbeats.

    Its errors end the service, whatever collective the other threads wait in.
    """

    def __init__(self, service: ServiceContext, rank: int, heartbeat_s: float) -> None:
        self._service = service
        self._rank = rank
        self._heartbeat_s = heartbeat_s
        self._pulse = SerialThread("pulse")
        self._failed = asyncio.Event()

    async def watch_peers(self, lifeline: Lifeline, starting: asyncio.Task[None] | None) -> None:
        """Wait for a peer to exit. RankError: it failed, so this rank ends at once too.

        Where the peer was asked to stop during its start, this rank's own start, the task `starting`, is cancelled.
        """
        peer = await lifeline.wait_for_exit()
        if self._service.stopping.is_set():
            return
        if peer.stopping:
            # The peer had not finished its start, so this process has trained nothing that must be finished first.
            logger.info("learner rank %d was asked to stop, and rank %d stops with it", peer.rank, self._rank)
            self._service.stopping.set()
            assert starting is not None
            starting.cancel()
            return
        self._failed.set()
        raise RankError(f"learner rank {peer.rank} is gone: its connection has ended (seen by rank {self._rank})")

    async def heartbeat(self, ranks: RankGroup) -> None:
        """Exchange heartbeats until cancelled; they also carry one rank's SIGTERM to the others.

        RankError: a peer missed its heartbeat, that is, it did not answer within the collectives' time-out.
        """
        while True:
            try:
                stopping = await self._pulse.run(partial(ranks.heartbeat, self._service.stopping.is_set()))
            except RankError:
                # While stopping, the first rank to leave looks like a failed one; no agreement is pending by then.
                if self._service.stopping.is_set():
                    return
                # This error must end the service before the training thread's own, which waits for this event.
                self._failed.set()
                raise
            if stopping:
                self._service.stopping.set()
            await asyncio.sleep(self._heartbeat_s)

    async def explain_failure(self) -> None:
        """Called when a collective has failed: wait for the detector's own error, which names the failed rank."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_EXPLANATION_S):
                await self._failed.wait()

    def close(self) -> None:
        """End the heartbeat's thread. Does not wait."""
        self._pulse.close()
