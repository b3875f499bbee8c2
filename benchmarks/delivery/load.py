"""The load: rollouts as a producer finishes them, played from the recording (`played`).

The number outstanding is bounded by the steps that were done, as the dispatcher bounds it.
"""

import asyncio
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from benchmarks.delivery.played import EXPERTS, Due, Played, routes
from benchmarks.delivery.shape import Shape
from producers.rollouts.event import routes_on_wire
from schemas import Event, StepCompleted
from streams.log.clients import enqueue
from streams.record import Output, Record
from streams.runtime.service_context import ServiceContext
from streams.stages.follower import follow

GO: Final = "go"
"""A file: once it is in the run's directory, the load begins."""

_LOOKED_S: Final = 0.01
_GATHERED: Final = 512
_BODIES: Final = 2
"""Written at once."""


class Load:
    """Writes the rollouts."""

    def __init__(self, service: ServiceContext, shape: Shape) -> None:
        self._service = service
        self._shape = shape
        self._trained = 0
        self._room = asyncio.Event()
        self._body: npt.NDArray[np.uint8] = np.empty((0, 0, 0), np.uint8)

    async def run(self) -> None:
        """Write them all and wait until the broker has them."""
        self._service.spawn(follow(self._service, ["steps"], on=self._on_step), "steps")
        played = Played(self._shape)
        if self._shape.tokens:
            self._body = routes(self._shape.tokens, *self._shape.routes)
        producer = self._service.log.producer()
        await producer.start()
        self._service.ready()
        await asyncio.to_thread(_wait_for_go, self._service.run_context.directory / GO)
        write = self._write_bodies if self._shape.tokens else self._write
        await write(producer, played)
        await producer.stop()
        await self._service.stopping.wait()

    async def _write(self, producer: Any, played: Played) -> None:
        deliveries: list[Awaitable[Any]] = []
        started_s = time.monotonic()
        for written, (due_s, due) in enumerate(played):
            if written - self._trained >= self._shape.outstanding:
                await self._wait_for_room(written)
            if due_s and (early_s := started_s + due_s - time.monotonic()) > 0:
                await asyncio.sleep(early_s)
            output = Output("rollouts", due.event(time.time()), key=due.group_id)
            deliveries.append(await enqueue(self._service.log, producer, output))
            if len(deliveries) >= _GATHERED:
                await asyncio.gather(*deliveries)
                deliveries.clear()
        await asyncio.gather(*deliveries)

    async def _write_bodies(self, producer: Any, played: Played) -> None:
        """As the producer writes long ones: the body in a thread, then the event."""
        slots = asyncio.Semaphore(_BODIES)

        async def write(due: Due) -> None:
            context = self._service.run_context
            async with slots:
                name = f"{due.group_id}.{due.member}"
                checked = await routes_on_wire(name, self._body, EXPERTS, self._service.blobs, context.inline_max_bytes)
                event = msgspec.structs.replace(due.event(time.time()), routes=checked)
                await (await enqueue(self._service.log, producer, Output("rollouts", event, key=due.group_id)))

        async with asyncio.TaskGroup() as tasks:
            for written, (_, due) in enumerate(played):
                await self._wait_for_room(written)
                tasks.create_task(write(due))

    async def _wait_for_room(self, written: int) -> None:
        while written - self._trained >= self._shape.outstanding:
            self._room.clear()
            await self._room.wait()

    def _on_step(self, event: Event, record: Record) -> None:
        if isinstance(event, StepCompleted):
            self._trained += event.sequences
            self._room.set()


def _wait_for_go(go: Path) -> None:
    while not go.exists():
        time.sleep(_LOOKED_S)


async def main(service: ServiceContext, shape: Shape) -> None:
    """The service."""
    await Load(service, shape).run()
