"""One rank from start to stop: rendezvous, restore, then batch after batch until the run stops.

    loader ──LoadedBatch──▶ agree ─▶ train ─▶ StepCompleted ─▶ gather ─▶ WeightsPublished (while the next batch trains)
                                                          └─▶ stage  ─▶ checkpoint       (while the next batch trains)

Before each batch the ranks agree that all train on the same one, so a SIGTERM to one rank stops all at the same step.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from torch import Tensor

from learner.batch.loader import BatchLoader, LoadedBatch, LoaderConfig
from learner.batch.prior_steps import PriorSteps, decode_prior_steps, read_prior_steps
from learner.checkpoint.manager import State
from learner.checkpoint.manifest import Position
from learner.errors import RankError
from learner.ranks.agreement import Agreement, Intent, merge_intents
from learner.ranks.failure_detector import FailureDetector
from learner.ranks.group import leave_group
from learner.ranks.lifeline import Lifeline, RendezvousInfo
from learner.ranks.rendezvous import rank0_endpoint
from learner.ranks.serial_thread import SerialThread
from learner.settings import LearnerSettings
from learner.training.build import build_components, check_settings
from learner.training.phases import Phases
from learner.training.step import StepReport
from learner.weights import gather
from learner.weights.canary import CanarySet
from learner.weights.producer_feedback import watch_producers
from learner.weights.publisher import Publisher
from schemas import Canary, StepCompleted
from streams.faults import reach
from streams.runtime.service_context import ServiceContext
from streams.telemetry import names, tracing

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


class Training:
    """Training on one rank. `run` returns when the service is asked to stop."""

    def __init__(self, service: ServiceContext, settings: LearnerSettings) -> None:
        self._service = service
        self._settings = settings
        self._rank = service.run_context.ordinal
        self._training = SerialThread("training")
        self._background = SerialThread("background")
        self._failure_detector = FailureDetector(service, service.run_context.ordinal, settings.parallel.heartbeat_s)
        self._phases = Phases(service.started_s)
        self._position = Position()
        self._saved_step = 0
        self._published_step = 0
        self._training_since: tuple[int, float] | None = None
        self._publishing: asyncio.Task[None] | None = None
        self._saving: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Train until the service is asked to stop. LearnerError, StreamsError: this rank cannot continue."""
        settings, service = self._settings, self._service
        self._phases.end("imports")
        # A user's mistake is reported by every rank, before the rendezvous.
        await self._training.run(partial(check_settings, settings, service.run_context))
        self._phases.end("configuration")
        endpoint = rank0_endpoint(service.run_context.directory, settings.parallel.master_port)
        lifeline = Lifeline(self._rank, settings.ranks, endpoint, service.run_context.run)
        service.add_status(lifeline.waits)
        service.add_status(self._waits)
        service.spawn(self._failure_detector.watch_peers(lifeline, asyncio.current_task()), "lifeline")
        try:
            info = await lifeline.rendezvous(settings.parallel.rendezvous_timeout_s)
            self._phases.end("rendezvous")
            await self._run_in_group(info)
        except asyncio.CancelledError:
            # Asked to stop while starting: without this the peers would wait for this rank until their deadline.
            if service.stopping.is_set():
                lifeline.announce_stop()
            raise
        finally:
            for resource in (self._training, self._background, self._failure_detector, lifeline):
                resource.close()
        leave_group()

    async def _run_in_group(self, info: RendezvousInfo) -> None:
        settings, service = self._settings, self._service
        async with service.wait("for the model", settings.parallel.rendezvous_timeout_s):
            on_joined = partial(self._phases.end, "groups")
            build = partial(build_components, settings, service.run_context, info, on_joined)
            components = self._components = await self._training.run(build)
        self._phases.end("model")
        service.spawn(self._failure_detector.heartbeat(components.ranks), "heartbeat")
        await self._run_collective(self._background, self._restore)
        self._phases.end("checkpoint")
        prior = await self._read_prior_steps()
        self._published_step = min(self._position.step, prior.published)
        self._canary = CanarySet(components.policy, components.ranks, prior.canary)
        config = LoaderConfig(self._rank, settings.ranks, components.shape, settings.fetch_timeout_s, prior.rejected)
        self._loader = BatchLoader(service, config, self._position.offset, self._position.next_batch)
        service.spawn(self._loader.fill(), "batch loader")
        self._publisher: Publisher | None = None
        if self._rank == 0:
            publisher = Publisher(service, components.policy.model, components.stored, settings)
            async with publisher:
                self._publisher = publisher
                service.spawn(watch_producers(service, publisher, settings.publish), "learner watches producers")
                await self._serve()
        else:
            await self._serve()

    def _restore(self) -> None:
        """Resume from the newest complete checkpoint, if there is one. Blocking and collective."""
        found = self._components.checkpoints.newest()
        if found is None:
            return
        path, manifest = found
        self._components.checkpoints.load(path, manifest, self._components.trainer.state())
        self._components.trainer.restored(manifest.position.updates)
        self._position = manifest.position
        self._saved_step = self._position.step
        logger.info("resumes from %s", path)

    async def _read_prior_steps(self) -> PriorSteps:
        """What the log holds of steps after the checkpoint: rank 0 reads it, and all ranks use the same answer."""
        read = b""
        if self._rank == 0:
            # One checkpoint may have been in flight, and each of the kept ones may turn out to be damaged.
            unsaved = (2 + self._settings.checkpoint.keep) * self._settings.checkpoint.every
            read = (await read_prior_steps(self._service.log, self._position.next_batch, unsaved)).encode()
        return decode_prior_steps((await self._collective(partial(self._components.ranks.exchange, read)))[0])

    async def _serve(self) -> None:
        self._phases.end("log")
        logger.info("learner rank %d %s", self._rank, self._phases)
        self._service.ready()
        if self._settings.publish.kind == "delta" and self._position.step:
            # The previous process's last publication is not in memory: publish an anchor that deltas can be based on.
            await self._publish()
        limit = self._settings.max_steps
        while limit is None or self._position.step < limit:
            if not await self._advance():
                break
        else:
            await self._finish()
            logger.info("completed %d steps, idles until asked to stop", self._position.step)
            await self._service.stopping.wait()
            await self._agree(None)
        await self._finish()

    async def _advance(self) -> bool:
        """Train on one batch and report it; False where the ranks agreed to stop."""
        waiting = time.monotonic()
        batch = await self._loader.next()
        waited_s = time.monotonic() - waiting
        agreed = await self._agree(batch)
        if agreed is None or batch is None:
            return False
        started = time.monotonic()
        step = self._position.step
        attributes = {names.STEP: step, names.VERSION: step + 1}
        self._training_since = (batch.plan.batch, started)
        with tracing.span(names.TRAIN, links=[batch.record], attributes=attributes):
            if self._settings.publish.canary:
                # Before the update: the engine's recorded log-probs are compared under the weights that sampled them.
                await self._collective(partial(self._canary.prepare, batch.micro_batches))
            report = await self._collective(partial(self._components.trainer.train, batch.micro_batches, step))
        self._training_since = None
        self._position = Position(
            step=step + 1,
            updates=self._components.trainer.updates,
            next_batch=batch.plan.batch + 1,
            offset=batch.record.offset + 1,
        )
        wall_s = time.monotonic() - started
        reach("learner.trained")
        await self._announce(batch, agreed, report, wall_s, waited_s)
        reach("learner.announced")
        if self._position.step % self._settings.publish.every == 0:
            await self._publish(batch)
        if self._position.step % self._settings.checkpoint.every == 0:
            await self._save()
        return True

    def _waits(self) -> list[str]:
        """What this rank is training on, as lines for `status`."""
        if self._training_since is None:
            return []
        batch, since = self._training_since
        return [f"trains on batch {batch} since {time.monotonic() - since:.0f} s"]

    async def _collective(self, work: Callable[[], _T]) -> _T:
        """Run `work`, which all ranks run, in the training thread."""
        return await self._run_collective(self._training, work)

    async def _run_collective(self, thread: SerialThread, work: Callable[[], _T]) -> _T:
        """Run `work` in `thread`. If another rank's exit breaks it, the failure detector names that rank first."""
        try:
            return await thread.run(work)
        except (RankError, RuntimeError):
            await self._failure_detector.explain_failure()
            raise

    async def _agree(self, batch: LoadedBatch | None) -> Agreement | None:
        """What all ranks together make of the batch, or None where one of them stops."""
        intent = Intent(None) if batch is None else Intent(batch.plan.batch, batch.rejected, batch.digests)
        agreed = merge_intents(await self._collective(partial(self._components.ranks.exchange, intent.encode())))
        if agreed is None:
            self._service.stopping.set()
        return agreed

    async def _announce(
        self, batch: LoadedBatch, agreed: Agreement, report: StepReport, wall_s: float, waited_s: float
    ) -> None:
        planned = {"packing/fill": batch.plan.fill, "packing/imbalance": batch.plan.imbalance}
        metrics = report.metrics | planned
        for name, value in metrics.items():
            self._service.gauge(name, value)
        self._service.gauge("step", self._position.step)
        self._service.gauge("idle_share", waited_s / (waited_s + wall_s))
        if self._publisher is not None:
            event = StepCompleted(
                step=self._position.step,
                batch=batch.plan.batch,
                batch_ref=batch.record.ref,
                version=self._position.step,
                metrics=metrics,
                tokens=report.tokens,
                sequences=report.sequences,
                rejected=agreed.rejected,
                wall_s=wall_s,
                waited_s=waited_s,
                time_s=time.time(),
                trained_digest=agreed.trained_digest,
                config_digest=self._service.run_context.config_digest,
            )
            await self._publisher.step(event, batch.record)

    async def _publish(self, batch: LoadedBatch | None = None) -> None:
        """Gather the weights now and upload them while training continues; one upload at a time."""
        whole, canary = await self._collective(self._gather)
        self._published_step = self._position.step
        if self._publisher is not None:
            await self._upload_done()
            record = None if batch is None else batch.record
            uploading = self._publisher.weights(whole, self._position.step, record, canary)
            self._publishing = self._service.spawn(uploading, f"publish v{self._position.step}")

    def _gather(self) -> tuple[dict[str, Tensor], Canary | None]:
        """Whole weights on rank 0, and the canary's log-probs under them on every rank. Blocking and collective."""
        whole = gather(self._components.policy, self._rank)
        if not self._settings.publish.canary:
            return whole, None
        return whole, self._canary.score()

    async def _upload_done(self) -> None:
        if self._publishing is not None:
            await self._publishing

    async def _save(self) -> None:
        """Copy the state now and write the checkpoint while training continues."""
        began = time.monotonic()
        await self._checkpoint_written()
        staged = await self._training.run(self._stage)
        self._service.gauge("checkpoint_blocked_s", time.monotonic() - began)
        self._saved_step = self._position.step
        writing = self._write(self._position, staged, self._publishing)
        self._saving = self._service.spawn(writing, f"checkpoint {self._position.step}")

    async def _write(self, position: Position, staged: State, publishing: asyncio.Task[None] | None) -> None:
        """Write once the step's weights are published, which a process that resumes from here would not do."""
        while not await self._is_uploaded(publishing):
            pass
        began = time.monotonic()
        await self._run_collective(self._background, partial(self._components.checkpoints.save, position, staged))
        self._service.gauge("checkpoint_write_s", time.monotonic() - began)

    async def _is_uploaded(self, publishing: asyncio.Task[None] | None) -> bool:
        """Whether rank 0's upload is done, asked repeatedly: an upload may last longer than a collective's time-out."""
        if publishing is not None:
            await asyncio.wait([publishing], timeout=self._settings.parallel.collective_timeout_s / 4)
        uploaded = publishing is None or (publishing.done() and publishing.result() is None)
        ranks = self._components.ranks
        answers = partial(ranks.exchange, b"uploaded" if uploaded else b"uploading", ranks.background)
        return (await self._run_collective(self._background, answers))[0] == b"uploaded"

    async def _checkpoint_written(self) -> None:
        if self._saving is not None:
            await self._saving

    def _stage(self) -> State:
        return self._components.checkpoints.stage(self._components.trainer.state())

    async def _finish(self) -> None:
        """Publish and save what was trained since the last publication and checkpoint, and wait until both are done."""
        if self._published_step < self._position.step:
            await self._publish()
        if self._saved_step < self._position.step:
            await self._save()
        await self._upload_done()
        await self._checkpoint_written()
