"""What rank 0 does with the producers' reports: compares canaries, and answers a refused delta with an anchor."""

import asyncio
import logging
from typing import Final

from learner.settings import PublishSettings
from learner.weights.canary import CanaryWatch
from learner.weights.publisher import Publisher
from streams.runtime.service_context import ServiceContext
from streams.stages.follower import follow

logger = logging.getLogger(__name__)

_ANSWERED: Final = 64


async def watch_producers(service: ServiceContext, publisher: Publisher, settings: PublishSettings) -> None:
    """Follow `weights` and `applied` until cancelled.

    A producer that refused a delta would generate with old weights until the next anchor is due, and the learner, whose
    batches come from these producers, might never get there: it publishes the version again at once, in full, and once.
    """
    due: asyncio.Queue[int] = asyncio.Queue()
    watch = CanaryWatch(settings.canary_bound, service.gauge, due.put_nowait)
    answering = service.spawn(_answer(publisher, due), "learner answers refusals")
    try:
        await follow(service, ["weights", "applied"], on=watch.on_event)
    finally:
        answering.cancel()


async def _answer(publisher: Publisher, due: asyncio.Queue[int]) -> None:
    answered: list[int] = []
    while True:
        version = await due.get()
        if version not in answered and await publisher.anchor(version):
            answered = [*answered[-_ANSWERED:], version]
