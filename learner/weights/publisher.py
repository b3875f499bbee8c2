"""What rank 0 writes: steps that are done and published weights, in transactions that fence a predecessor."""

import asyncio
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from learner.batch.loader import TOPIC
from learner.settings import LearnerSettings
from learner.weights import Publication, Wire, stored_form
from schemas import Canary, StepCompleted, WeightFile, WeightsPublished
from streams.faults import reach
from streams.log.transaction import TransactionalWriter
from streams.record import Output, Record
from streams.runtime.service_context import ServiceContext
from streams.telemetry import names, tracing

logger = logging.getLogger(__name__)


class Publisher:
    """Use as an async context. Every method may raise DeliveryError, DeadlineError or FencedError."""

    def __init__(
        self, service: ServiceContext, model: Any, stored: Mapping[str, tuple[int, ...]], settings: LearnerSettings
    ) -> None:
        self._service = service
        self._model = model
        self._stored = stored
        self._precision = settings.publish.wire
        self._wire = Wire(settings.publish, settings.publish.max_file_bytes)
        self._canary: Canary | None = None
        self._scratch = service.run_context.directory / "publish"
        self._writer = TransactionalWriter(service.log, f"{service.run_context.run}.learner")
        # One transaction at a time: weights of one step are uploaded while the next step ends.
        self._lock = asyncio.Lock()
        # And one publication at a time: each is a difference from the one before.
        self._publishing = asyncio.Lock()

    async def __aenter__(self) -> "Publisher":
        await self._writer.open()
        # What a predecessor was writing when it was killed.
        await asyncio.to_thread(shutil.rmtree, self._scratch, ignore_errors=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        # Kept: whoever comes to publish now waits until it is cancelled.
        await self._publishing.acquire()
        await self._writer.close()

    async def step(self, event: StepCompleted, batch: Record) -> None:
        """Write `event`; the batch's offset is committed with it, for whoever watches the lag."""
        async with self._lock:
            await self._writer.write(
                [Output("steps", event, cause=batch)],
                group=f"{self._service.run_context.run}.learner",
                offsets={(TOPIC, 0): (batch.offset + 1, "")},
            )

    async def weights(
        self, whole: Mapping[str, Tensor], version: int, batch: Record | None, canary: Canary | None = None
    ) -> None:
        """Files to the blob store, durably, and the manifest after them. ModelError: a tensor the model has not."""
        async with self._publishing:
            self._canary = canary
            await self._publish(partial(self._written, whole, version), version, batch)

    async def anchor(self, version: int) -> bool:
        """Publish `version` once more, in full, if it is the newest; whether it was. For producers without its base."""
        async with self._publishing:
            if self._wire.version != version:
                return False
            logger.info("publishes weights %d in full: a producer could not use what they were published as", version)
            await self._publish(self._wire.anchor, version, None)
            return True

    async def _publish(self, write: Callable[[Path], Publication], version: int, batch: Record | None) -> None:
        attributes = {names.VERSION: version}
        with tracing.span(names.PUBLISH, cause=batch, attributes=attributes):
            began = time.perf_counter()
            publication, files = await asyncio.to_thread(self._upload, write, version)
            reach("publisher.uploaded")
            event = WeightsPublished(
                version=version,
                kind=publication.kind,
                precision=self._precision,
                files=files,
                tensors=publication.tensors,
                parent_step=version,
                base_version=publication.base_version,
                digest=publication.digest,
                base_digest=publication.base_digest,
                canary=self._canary,
                time_s=time.time(),
            )
            async with self._lock:
                await self._writer.write([Output("weights", event, key=str(version), cause=batch)])
                reach("publisher.published")
        self._service.gauge("published_bytes", sum(file.blob.size for file in files))
        self._service.gauge("publish_s", time.perf_counter() - began)

    def _written(self, whole: Mapping[str, Tensor], version: int, directory: Path) -> Publication:
        return self._wire.write(stored_form(self._model, whole, self._stored), version, directory)

    def _upload(self, write: Callable[[Path], Publication], version: int) -> tuple[Publication, tuple[WeightFile, ...]]:
        scratch = self._scratch / f"v{version}"
        scratch.mkdir(parents=True, exist_ok=True)
        try:
            publication = write(scratch)
            return publication, tuple(self._put(path, version) for path in publication.paths)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _put(self, path: Path, version: int) -> WeightFile:
        return WeightFile(name=path.name, blob=self._service.blobs.put_file(f"weights/v{version}/{path.name}", path))
