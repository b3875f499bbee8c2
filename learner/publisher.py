"""Rank 0's word to the world: steps done and weights published, each in a transaction that fences a predecessor."""

import asyncio
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from learner.feed import TOPIC
from learner.weights import stored_form, write_files
from schemas import StepCompleted, WeightFile, WeightsPublished
from streams import names, tracing
from streams.faults import reach
from streams.record import Output, Record
from streams.scope import Scope
from streams.transaction import TransactionalWriter


class Publisher:
    """Use as an async context. Every method may raise DeliveryError, DeadlineError or FencedError."""

    def __init__(self, scope: Scope, model: Any, stored: Mapping[str, tuple[int, ...]], max_file_bytes: int) -> None:
        self._scope = scope
        self._model = model
        self._stored = stored
        self._max_file_bytes = max_file_bytes
        self._scratch = scope.context.directory / "publish"
        self._writer = TransactionalWriter(scope.log, f"{scope.context.run}.learner")
        # One transaction at a time: weights of one step are uploaded while the next step ends.
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> "Publisher":
        await self._writer.open()
        # What a predecessor was writing when it was killed.
        await asyncio.to_thread(shutil.rmtree, self._scratch, ignore_errors=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._writer.close()

    async def step(self, event: StepCompleted, batch: Record) -> None:
        """Write `event`; the batch's offset is committed with it, for whoever watches the lag."""
        async with self._lock:
            await self._writer.write(
                [Output("steps", event, cause=batch)],
                group=f"{self._scope.context.run}.learner",
                topic=TOPIC,
                offsets={0: (batch.offset + 1, "")},
            )

    async def weights(self, whole: Mapping[str, Tensor], version: int, batch: Record | None) -> None:
        """Files to the blob store, durably, and the manifest after them. ModelError: a tensor the model has not."""
        attributes = {names.VERSION: version}
        with tracing.span(names.PUBLISH, cause=batch, attributes=attributes):
            files, tensors = await asyncio.to_thread(self._upload, whole, version)
            reach("publisher.uploaded")
            event = WeightsPublished(
                version=version,
                kind="full",
                precision="bf16",
                files=files,
                tensors=tensors,
                parent_step=version,
                time_s=time.time(),
            )
            async with self._lock:
                await self._writer.write([Output("weights", event, key=str(version), cause=batch)])
                reach("publisher.published")

    def _upload(self, whole: Mapping[str, Tensor], version: int) -> tuple[tuple[WeightFile, ...], int]:
        tensors = stored_form(self._model, whole, self._stored)
        scratch = self._scratch / f"v{version}"
        scratch.mkdir(parents=True, exist_ok=True)
        try:
            paths = write_files(tensors, scratch, self._max_file_bytes)
            return tuple(self._put(path, version) for path in paths), len(tensors)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _put(self, path: Path, version: int) -> WeightFile:
        return WeightFile(name=path.name, blob=self._scope.blobs.put_file(f"weights/v{version}/{path.name}", path))
