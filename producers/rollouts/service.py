"""The rollout producer as a service: engine up, newest weights in, then prompts from the log until it is stopped."""

import asyncio
import logging
import time
from typing import Final

from producers.rollouts.engine.supervised import SupervisedEngine
from producers.rollouts.settings import ProducerSettings
from producers.rollouts.weights.subscriber import WeightSubscriber
from producers.rollouts.worker import RolloutWorker
from schemas.events import GroupRequested
from schemas.services import SERVICES
from streams.log.clients import Writer
from streams.runtime.service_context import ServiceContext
from streams.stages.follower import follow
from streams.stages.worker import WorkerSpec, run_worker

logger = logging.getLogger(__name__)

PRODUCER: Final = SERVICES["producer"]
_REPORT_S: Final = 2.0
_CATCH_UP_S: Final = 60.0


async def main(service: ServiceContext, settings: ProducerSettings) -> None:
    """Run the producer until the service is asked to stop.

    ConfigurationError: the settings or the model directory are wrong. EngineStartError: the engine did not come up.
    EngineDied: it started, and kept dying; the supervisor starts the service again, which resumes what was in flight.
    """
    producer_id = f"producer-{service.run_context.ordinal}"
    engine = SupervisedEngine(settings.engine_settings(service.run_context.seed))
    worker = RolloutWorker(service, settings, engine, producer_id)
    try:
        if await _started(service, engine, settings.start_timeout_s):
            async with Writer(service.log) as writer:
                cache = service.run_context.directory / "cache" / producer_id
                weights = WeightSubscriber(engine, service.blobs, writer, producer_id, cache, lambda: worker.in_flight)
                await _serve(service, settings, engine, worker, weights)
    finally:
        await engine.stop()


async def _started(service: ServiceContext, engine: SupervisedEngine, timeout_s: float) -> bool:
    """Whether the engine is up; False where the service was asked to stop before it was."""
    began = time.monotonic()
    starting = asyncio.ensure_future(engine.start())
    stopping = asyncio.ensure_future(service.stopping.wait())
    try:
        # The engine's own deadline comes first and says more; this one makes the wait visible.
        async with service.wait("for the engine to start", timeout_s + 60.0):
            await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                return False
            await starting
    finally:
        stopping.cancel()
        if not starting.done():
            starting.cancel()
            await asyncio.wait([starting])
    logger.info("engine up after %.1f s", time.monotonic() - began)
    return True


async def _serve(
    service: ServiceContext,
    settings: ProducerSettings,
    engine: SupervisedEngine,
    worker: RolloutWorker,
    weights: WeightSubscriber,
) -> None:
    caught_up = asyncio.Event()
    tasks = [
        service.spawn(
            follow(service, PRODUCER.follows, on=weights.on_event, caught_up=caught_up), "producer follows weights"
        )
    ]
    service.add_status(engine.waits)
    service.add_status(worker.waits)
    try:
        async with service.wait("for the published weights to be known", _CATCH_UP_S):
            await caught_up.wait()
        await weights.start()
        engine.prepare = weights.bring_up_to_date
        tasks.append(service.spawn(engine.run(), "producer watches the engine"))
        tasks.append(service.spawn(weights.run(), "producer applies weights"))
        tasks.append(service.spawn(weights.canary.run(), "producer scores the canary"))
        tasks.append(service.spawn(_report(service, engine, worker), "producer reports"))
        await run_worker(
            service, WorkerSpec(PRODUCER.name, PRODUCER.input, settings.groups_in_flight, (GroupRequested,)), worker
        )
    finally:
        for task in tasks:
            task.cancel()
        # A start of the engine that is broken off has processes to end first.
        await asyncio.wait(tasks)


async def _report(service: ServiceContext, engine: SupervisedEngine, worker: RolloutWorker) -> None:
    """Figures for `/status`, until cancelled; the rate is of completed rollouts since the last report."""
    tokens, since = worker.tokens, time.monotonic()
    while True:
        await asyncio.sleep(_REPORT_S)
        now = time.monotonic()
        service.gauge("tokens_per_s", (worker.tokens - tokens) / (now - since))
        service.gauge("tokens", worker.tokens)
        service.gauge("rollouts", worker.rollouts)
        service.gauge("rollouts_in_flight", worker.in_flight)
        service.gauge("rollouts_at_once_limit", worker.quarantine.limit)
        service.gauge("prompts_suspected", worker.quarantine.suspected)
        service.gauge("engine_restarts", engine.incarnation)
        tokens, since = worker.tokens, now
