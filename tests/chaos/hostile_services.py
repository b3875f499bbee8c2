"""The real services on a broker, with a producer whose engine invents its responses."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from consumers.batches import service as batches
from consumers.batches.settings import BatchSettings
from consumers.groups import service as groups
from consumers.groups.settings import GroupSettings
from consumers.rewards import service as rewards
from consumers.rewards.settings import RewardSettings
from deploy.cli.commands.demo import DEMO
from deploy.config.run import load
from deploy.local.session import topic_specs
from producers.dispatcher import service as dispatcher
from producers.dispatcher.settings import DispatcherSettings
from producers.dispatcher.sources import JsonlSource
from producers.rollouts.engine.supervised import SupervisedEngine
from producers.rollouts.settings import ProducerSettings
from producers.rollouts.weights.subscriber import WeightSubscriber
from producers.rollouts.worker import RolloutWorker
from schemas import (
    GroupRequested,
)
from streams.blobs.store import BlobStore
from streams.broker import Broker
from streams.log.admin import Admin
from streams.log.clients import Log, LogSettings, Writer
from streams.runtime.service_context import ServiceContext
from streams.stages.follower import follow
from streams.stages.worker import WorkerSpec, run_worker
from tests.builders import context_of

MODEL: Final = Path(__file__).parents[2] / "models" / "tiny-moe"
PARTITIONS: Final = 2


def log_on(broker: Broker) -> Log:
    """Topics of a run of its own, as the command makes them."""
    run = f"hostile-{uuid.uuid4().hex[:8]}"
    config = load(DEMO, overrides=[f'run.id="{run}"', f"run.partitions={PARTITIONS}"])
    with Admin(broker.bootstrap) as admin:
        admin.create_topics(topic_specs(config))
    return Log(LogSettings(broker.bootstrap, run, PARTITIONS), "test")


@asynccontextmanager
async def serving(log: Log, directory: Path) -> AsyncIterator[None]:
    """All light services and the producer's stage and weight subscriber, whose engine is never started."""
    context = context_of(log, directory, drain_s=5.0)
    prompts = directory / "prompts.jsonl"
    prompts.write_text('{"prompt": "3+1=", "verifier": "exact_match", "reference": "4"}\n')
    # Requests of the dispatcher itself are past their deadline at once as well.
    asking = DispatcherSettings(
        source=JsonlSource(path=str(prompts)), groups_per_batch=2, group_timeout_s=1e-6, outcome_grace_s=3600.0
    )
    names = ("rewards", "groups", "batches", "dispatcher", "producer")
    async with asyncio.TaskGroup() as tasks:
        scopes = {name: ServiceContext(name, context, log, BlobStore(context.blob_uri), tasks) for name in names}
        running = [
            tasks.create_task(rewards.main(scopes["rewards"], RewardSettings(model=str(MODEL)))),
            tasks.create_task(groups.main(scopes["groups"], GroupSettings(settle_s=0.5, longest_s=2.0))),
            tasks.create_task(batches.main(scopes["batches"], BatchSettings(groups_per_batch=2))),
            tasks.create_task(dispatcher.main(scopes["dispatcher"], asking)),
            tasks.create_task(producing(scopes["producer"])),
        ]
        yield
        for service in scopes.values():
            service.stopping.set()
        await asyncio.wait(running, timeout=30)
        for service in scopes.values():
            service.cancel_spawned()


async def producing(service: ServiceContext) -> None:
    """The producer without its engine: nothing here is allowed to reach one."""
    settings = ProducerSettings(model=str(MODEL))
    engine = SupervisedEngine(settings.engine_settings(0))
    async with Writer(service.log) as writer:
        cache = service.run_context.directory / "cache"
        weights = WeightSubscriber(engine, service.blobs, writer, "producer-0", cache, lambda: 0)
        tasks = [
            service.spawn(follow(service, ["weights"], on=weights.on_event), "producer follows weights"),
            service.spawn(weights.run(), "producer applies weights"),
        ]
        try:
            worker = RolloutWorker(service, settings, engine, "producer-0")
            await run_worker(service, WorkerSpec("producer", "prompts", 64, (GroupRequested,)), worker)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
