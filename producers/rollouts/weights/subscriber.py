"""The weight subscriber: fetched and verified while generation continues, swapped in flight, then reported.

A publication that cannot be read or does not fit is named in the log and left alone; the engine keeps the weights that
it has, whole, until the next one. A `WeightsRefused` on the log reports it, and the learner answers a
delta that was of no use with an anchor.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

from producers.rollouts.engine import errors
from producers.rollouts.engine.errors import EngineDied
from producers.rollouts.engine.supervised import SupervisedEngine
from producers.rollouts.engine.weight_files import WeightFile
from producers.rollouts.weights.canary import CanaryScorer
from producers.rollouts.weights.publications import Publications
from producers.rollouts.weights.store import WeightStore
from schemas.events import Event, WeightsApplied, WeightsPublished, WeightsRefused, report_key
from streams.blobs.store import BlobStore
from streams.errors import BlobError
from streams.log.clients import Writer
from streams.log.dead_letters import dead_letter
from streams.record import Output, Record
from streams.telemetry import names, tracing

logger = logging.getLogger(__name__)


class WeightSubscriber:
    """Keeps one engine at the newest published weights."""

    def __init__(
        self,
        engine: SupervisedEngine,
        blobs: BlobStore,
        writer: Writer,
        producer_id: str,
        cache: Path,
        in_flight: Callable[[], int],
    ) -> None:
        self.canary = CanaryScorer(engine, writer)
        self._engine = engine
        self._writer = writer
        self._producer_id = producer_id
        self._store = WeightStore(blobs, cache)
        self._in_flight = in_flight
        self._publications = Publications()
        self._published = asyncio.Event()
        self._applying = asyncio.Lock()

    def on_event(self, event: Event, record: Record) -> None:
        """A record of the `weights` topic."""
        if isinstance(event, WeightsPublished):
            self._publications.offer(event, record)
            self._published.set()

    async def start(self) -> None:
        """Before the first prompt: the newest weights there are, or the announcement that none are but version 0."""
        await asyncio.to_thread(self._store.clear)
        await self.bring_up_to_date()
        if self._engine.version == 0:
            await self._report(WeightsApplied(producer_id=self._producer_id, version=0, time_s=time.time()))

    async def run(self) -> None:
        """Apply each publication as it comes, until cancelled."""
        while True:
            await self._published.wait()
            try:
                await self.bring_up_to_date()
            except EngineDied as error:
                # Whoever starts the next engine calls `bring_up_to_date` for it.
                logger.warning("weights were not applied: %s", error)

    async def bring_up_to_date(self) -> None:
        """Put the newest usable publication into the engine. EngineDied: it could not take it."""
        async with self._applying:
            self._published.clear()
            while (found := self._publications.newest(self._engine.version)) is not None:
                event, record = found
                try:
                    await self._apply(event, record)
                except (BlobError, errors.WeightsRefused, OSError) as error:
                    self._publications.give_up(event.version)
                    logger.error(
                        "WEIGHTS %d CANNOT BE USED, generating with %d until the next publication: %s",
                        event.version, self._engine.version, error,
                    )  # fmt: skip
                    if not isinstance(error, OSError):  # which is this machine's own trouble, not the publication's
                        await self._writer.write(dead_letter(record, "producer", str(error), time.time()))
                        await self._report(
                            WeightsRefused(producer_id=self._producer_id, version=event.version, time_s=time.time())
                        )

    async def _apply(self, event: WeightsPublished, record: Record) -> None:
        with tracing.span(names.SYNC, cause=record, attributes={names.VERSION: event.version}):
            began = time.perf_counter()
            held = await asyncio.to_thread(self._store.bring, event, self._publications.usable())
            fetch_s = time.perf_counter() - began
            in_flight = self._in_flight()
            files = [WeightFile(file.path, file.digest) for file in held.files]
            update = await self._engine.update_weights(event.version, files)
            applied = WeightsApplied(
                producer_id=self._producer_id,
                version=event.version,
                time_s=time.time(),
                published_s=event.time_s,
                fetch_s=fetch_s,
                pause_s=update.pause_s,
                in_flight=in_flight,
            )
            await self._report(applied)
        self.canary.applied(event.canary, applied)
        logger.info(
            "weights %d applied with %d rollouts in flight: fetched in %.0f ms, staged in %.0f ms, paused %.1f ms",
            event.version, in_flight, fetch_s * 1e3, update.prepare_s * 1e3, update.pause_s * 1e3,
        )  # fmt: skip

    async def _report(self, report: WeightsApplied | WeightsRefused) -> None:
        await self._writer.write(Output("applied", report, key=report_key(report)))
