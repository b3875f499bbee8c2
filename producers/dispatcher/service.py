"""The dispatcher as a service: fences its predecessor, reads the log to its end, then keeps the window full."""

import asyncio
import logging
import time
from typing import Final

from producers.dispatcher.blob_gc import NeededBlobs, collect_regularly
from producers.dispatcher.dispatch import TOPICS, Dispatch
from producers.dispatcher.settings import DispatcherSettings
from producers.dispatcher.sources import Prompt, SourceError, without
from producers.dispatcher.unowned_dead_letters import UnownedDeadLetters
from schemas.events import Event
from streams.log.transaction import TransactionalWriter
from streams.record import Output, Record
from streams.runtime.service_context import ServiceContext
from streams.stages.follower import follow

logger = logging.getLogger(__name__)

_REBUILD_S: Final = 300.0
"""Longest time for reading the log at start: far above what a retention's worth of 1 KB records takes."""

_IDLE_S: Final = 5.0
"""Figures are refreshed at least this often, also where nothing happens."""

_TRANSACTION_REQUESTS: Final = 256
"""Requests of one transaction: a round of thousands of prompts must not hold one open for long."""


def load_prompts(settings: DispatcherSettings) -> tuple[list[Prompt], list[Prompt]]:
    """Training and held-back prompts, checked completely. SourceError: what is wrong with them, in one sentence."""
    held_back = [] if settings.held_back is None else settings.held_back.load()
    every = settings.source.load()
    prompts = without(every, held_back)
    if len(prompts) < len(every):
        logger.warning("%d prompts are held back and so not trained on", len(every) - len(prompts))
    if not prompts:
        raise SourceError("no prompt is left to train on: every one of the source is held back")
    return prompts, held_back


async def main(service: ServiceContext, settings: DispatcherSettings) -> None:
    """Run the dispatcher until the service is asked to stop.

    Each group is requested exactly once: the predecessor is fenced before the log is read, everything that is known
    comes from the log, and requests are written in transactions. FencedError: a successor took over.
    """
    prompts, held_back = await asyncio.to_thread(load_prompts, settings)
    context = service.run_context
    dispatch = Dispatch(settings, prompts, held_back, context.seed, config_digest=context.config_digest)
    writer = TransactionalWriter(service.log, f"{service.run_context.run}.dispatcher")
    await writer.open()
    try:
        changed, caught_up = asyncio.Event(), asyncio.Event()
        unreadable, needed = UnownedDeadLetters(), NeededBlobs()

        def take(event: Event, record: Record) -> None:
            dispatch.on_event(event)
            unreadable.on_event(event)
            needed.on_event(event)
            changed.set()

        def refuse(record: Record, error: str) -> None:
            unreadable.refuse(record, error)
            changed.set()

        following = service.spawn(
            follow(service, TOPICS, on=take, caught_up=caught_up, on_unreadable=refuse), "dispatcher follows"
        )
        async with service.wait("for the log to be read to its end", _REBUILD_S):
            await _first_of(caught_up, service.stopping)
        if not service.stopping.is_set():
            dispatch.rebuilt()
            logger.info(
                "%d prompts and %d held-back ones; %d groups asked for before, %d of them outstanding, %d steps done",
                len(prompts), len(held_back), dispatch.requested, dispatch.admission.outstanding, dispatch.steps,
            )  # fmt: skip
            service.add_status(dispatch.waiting)
            service.ready()
            if settings.retention_h:
                service.spawn(collect_regularly(service, settings.retention_h, needed), "blobs are collected")
            await _keep_full(service, dispatch, unreadable, writer, changed)
        following.cancel()
    finally:
        await writer.close()


async def _keep_full(
    service: ServiceContext,
    dispatch: Dispatch,
    unreadable: UnownedDeadLetters,
    writer: TransactionalWriter,
    changed: asyncio.Event,
) -> None:
    while not service.stopping.is_set():
        changed.clear()
        now_s = time.time()
        dispatch.give_up(now_s)
        await _write(writer, [Output("prompts", request, key=request.group_id) for request in dispatch.due(now_s)])
        await _write(writer, unreadable.dead_letters(now_s))
        for note in dispatch.notes():
            logger.warning("%s", note)
        _report(service, dispatch)
        next_s = dispatch.next_time_s()
        idle_s = _IDLE_S if next_s is None else min(_IDLE_S, max(0.0, next_s - time.time()))
        await _first_of(changed, service.stopping, timeout_s=idle_s)


async def _write(writer: TransactionalWriter, outputs: list[Output]) -> None:
    for first in range(0, len(outputs), _TRANSACTION_REQUESTS):
        await writer.write(outputs[first : first + _TRANSACTION_REQUESTS])


def _report(service: ServiceContext, dispatch: Dispatch) -> None:
    service.gauge("requested_groups", dispatch.requested)
    service.gauge("outstanding_groups", dispatch.admission.outstanding)
    service.gauge("groups_waiting_for_batch", dispatch.admission.waiting_for_batch)
    service.gauge("outstanding_held_back_groups", dispatch.evaluating.outstanding)
    service.gauge("refused_prompts", dispatch.refused_prompts)
    service.gauge("steps", dispatch.steps)
    service.gauge("finished", dispatch.finished())


async def _first_of(*events: asyncio.Event, timeout_s: float | None = None) -> None:
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
