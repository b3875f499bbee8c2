"""The life of one rank: meet, restore, then batch after batch until the run stops.

    feed ──LoadedBatch──▶ agree ─▶ train ─▶ StepCompleted ─▶ gather ─▶ WeightsPublished (beside the next batch)
                                                        └─▶ snapshot ─▶ checkpoint     (beside the next batch)

Ranks agree before each batch that all go on with the same one, so that a SIGTERM to one ends all at the same step.
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
from learner.ranks.agreement import Intent, merge_intents
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
from schemas import Canary, Rejected, StepCompleted
from streams.faults import reach
from streams.runtime.service_context import ServiceContext
from streams.telemetry import names, tracing

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


class Training:
    """Everything of one rank. `run` returns when the service is asked to stop."""

    def __init__(self, service: ServiceContext, settings: LearnerSettings) -> None:
        self._service = service
        self._settings = settings
        self._rank = service.run_context.ordinal
        self._training = SerialThread("training")
        self._background = SerialThread("background")
        self._failure_detector = FailureDetector(service, service.run_context.ordinal, settings.heartbeat_s)
        self._phases = Phases(service.started_s)
        self._position = Position()
        self._saved_step = 0
        self._published_step = 0
        self._training_since: tuple[int, float] | None = None
        self._publishing: asyncio.Task[None] | None = None
        self._saving: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """See the class. LearnerError, StreamsError: this rank cannot go on."""
        settings, service = self._settings, self._service
        self._phases.end("imports")
        # What the user got wrong is said before the ranks meet, and by each of them.
        await self._training.run(partial(check_settings, settings, service.run_context))
        self._phases.end("configuration")
        place = rank0_endpoint(service.run_context.directory, settings.master_port)
        lifeline = Lifeline(self._rank, settings.ranks, place, service.run_context.run)
        service.add_status(lifeline.waits)
        service.add_status(self._waits)
        service.spawn(self._failure_detector.watch_peers(lifeline, asyncio.current_task()), "lifeline")
        try:
            meeting = await lifeline.rendezvous(settings.rendezvous_timeout_s)
            self._phases.end("meeting")
            await self._live(meeting)
        except asyncio.CancelledError:
            # Told to stop while starting: the others wait for this rank, and would do so until their deadline.
            if service.stopping.is_set():
                lifeline.announce_stop()
            raise
        finally:
            for ended in (self._training, self._background, self._failure_detector, lifeline):
                ended.close()
        leave_group()

    async def _live(self, meeting: RendezvousInfo) -> None:
        settings, service = self._settings, self._service
        async with service.wait("for the model", settings.rendezvous_timeout_s):
            joined = partial(self._phases.end, "groups")
            assembling = partial(build_components, settings, service.run_context, meeting, joined)
            parts = self._parts = await self._training.run(assembling)
        self._phases.end("model")
        service.spawn(self._failure_detector.heartbeat(parts.ranks), "heartbeat")
        await self._together(self._background, self._restore)
        self._phases.end("checkpoint")
        done = await self._done()
        self._published_step = min(self._position.step, done.published)
        self._canary = CanarySet(parts.policy, parts.ranks, done.canary_ids())
        reading = LoaderConfig(self._rank, settings.ranks, parts.shape, settings.fetch_timeout_s, done.rejected)
        self._loader = BatchLoader(service, reading, self._position.offset, self._position.next_batch)
        service.spawn(self._loader.fill(), "feed")
        self._publisher: Publisher | None = None
        if self._rank == 0:
            publisher = Publisher(service, parts.policy.model, parts.stored, settings)
            async with publisher:
                self._publisher = publisher
                service.spawn(watch_producers(service, publisher, settings.publish), "learner watches producers")
                await self._serve()
        else:
            await self._serve()

    def _restore(self) -> None:
        """Blocking: go on from the newest whole checkpoint, if there is one."""
        found = self._parts.checkpoints.newest()
        if found is None:
            return
        path, manifest = found
        self._parts.checkpoints.load(path, manifest, self._parts.trainer.state())
        self._parts.trainer.restored(manifest.position.updates)
        self._position = manifest.position
        self._saved_step = self._position.step
        logger.info("goes on from %s", path)

    async def _done(self) -> PriorSteps:
        """What rank 0 reads on the log: all ranks go by the same."""
        read = b""
        if self._rank == 0:
            # One checkpoint may be in the writing, and each of the kept ones may turn out damaged.
            unsaved = (2 + self._settings.keep_checkpoints) * self._settings.checkpoint_every
            read = (await read_prior_steps(self._service.log, self._position.next_batch, unsaved)).encode()
        return decode_prior_steps((await self._collective(partial(self._parts.ranks.exchange, read)))[0])

    async def _serve(self) -> None:
        self._phases.end("log")
        logger.info("learner rank %d %s", self._rank, self._phases)
        self._service.ready()
        if self._settings.publish.kind == "delta" and self._position.step:
            # What a predecessor published last is not in memory: an anchor, for deltas to be told from.
            await self._publish()
        limit = self._settings.max_steps
        while limit is None or self._position.step < limit:
            if not await self._advance():
                break
        else:
            await self._finish()
            logger.info("did %d steps, idles until it is told to stop", self._position.step)
            await self._service.stopping.wait()
            await self._agree(None)
        await self._finish()

    async def _advance(self) -> bool:
        """One batch; False where the ranks agreed to stop."""
        waiting = time.monotonic()
        batch = await self._loader.next()
        waited_s = time.monotonic() - waiting
        rejected = await self._agree(batch)
        if rejected is None or batch is None:
            return False
        started = time.monotonic()
        step = self._position.step
        attributes = {names.STEP: step, names.VERSION: step + 1}
        self._training_since = (batch.plan.batch, started)
        with tracing.span(names.TRAIN, links=[batch.record], attributes=attributes):
            report = await self._collective(partial(self._parts.trainer.train, batch.micro_batches, step))
        self._training_since = None
        self._position = Position(
            step=step + 1,
            updates=self._parts.trainer.updates,
            next_batch=batch.plan.batch + 1,
            offset=batch.record.offset + 1,
        )
        wall_s = time.monotonic() - started
        reach("learner.trained")
        await self._announce(batch, rejected, report, wall_s, waited_s)
        reach("learner.announced")
        if self._position.step % self._settings.publish_every == 0:
            await self._publish(batch)
        if self._position.step % self._settings.checkpoint_every == 0:
            await self._save()
        return True

    def _waits(self) -> list[str]:
        """For `status`."""
        if self._training_since is None:
            return []
        batch, since = self._training_since
        return [f"trains on batch {batch} since {time.monotonic() - since:.0f} s"]

    async def _collective(self, work: Callable[[], _T]) -> _T:
        """Run `work` in the training thread. Where another rank's end breaks it, the vigil says whose it was."""
        return await self._together(self._training, work)

    async def _together(self, lane: SerialThread, work: Callable[[], _T]) -> _T:
        try:
            return await lane.run(work)
        except (RankError, RuntimeError):
            await self._failure_detector.explain_failure()
            raise

    async def _agree(self, batch: LoadedBatch | None) -> tuple[Rejected, ...] | None:
        """What all ranks together reject of the batch, or None where one of them stops."""
        intent = Intent(None) if batch is None else Intent(batch.plan.batch, batch.rejected)
        rejected = merge_intents(await self._collective(partial(self._parts.ranks.exchange, intent.encode())))
        if rejected is None:
            self._service.stopping.set()
        return rejected

    async def _announce(
        self, batch: LoadedBatch, rejected: tuple[Rejected, ...], report: StepReport, wall_s: float, waited_s: float
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
                rejected=rejected,
                wall_s=wall_s,
                waited_s=waited_s,
                time_s=time.time(),
            )
            await self._publisher.step(event, batch.record)

    async def _publish(self, batch: LoadedBatch | None = None) -> None:
        """Gather now, upload beside what follows; one upload at a time."""
        whole, canary = await self._collective(partial(self._gather, batch))
        self._published_step = self._position.step
        if self._publisher is not None:
            await self._published()
            record = None if batch is None else batch.record
            uploading = self._publisher.weights(whole, self._position.step, record, canary)
            self._publishing = self._service.spawn(uploading, f"publish v{self._position.step}")

    def _gather(self, batch: LoadedBatch | None) -> tuple[dict[str, Tensor], Canary | None]:
        """Collective: whole weights on rank 0, and what they say of the canary's sequences."""
        whole = gather(self._parts.policy, self._rank)
        if not self._settings.publish.canary:
            return whole, None
        return whole, self._canary.score(() if batch is None else batch.micro_batches)

    async def _published(self) -> None:
        if self._publishing is not None:
            await self._publishing

    async def _save(self) -> None:
        """Copy now, write beside what follows."""
        began = time.monotonic()
        await self._saved()
        staged = await self._training.run(self._stage)
        self._service.gauge("checkpoint_blocked_s", time.monotonic() - began)
        self._saved_step = self._position.step
        writing = self._write(self._position, staged, self._publishing)
        self._saving = self._service.spawn(writing, f"checkpoint {self._position.step}")

    async def _write(self, position: Position, staged: State, publishing: asyncio.Task[None] | None) -> None:
        """Weights of the step are out before its checkpoint is there: no life after it would publish them."""
        while not await self._is_out(publishing):
            pass
        began = time.monotonic()
        await self._together(self._background, partial(self._parts.checkpoints.save, position, staged))
        self._service.gauge("checkpoint_write_s", time.monotonic() - began)

    async def _is_out(self, publishing: asyncio.Task[None] | None) -> bool:
        """Whether rank 0's upload is done: it may take longer than a collective, in which the others would wait."""
        if publishing is not None:
            await asyncio.wait([publishing], timeout=self._settings.collective_timeout_s / 4)
        out = publishing is None or (publishing.done() and publishing.result() is None)
        ask = partial(self._parts.ranks.exchange, b"out" if out else b"not yet", self._parts.ranks.background)
        return (await self._together(self._background, ask))[0] == b"out"

    async def _saved(self) -> None:
        if self._saving is not None:
            await self._saving

    def _stage(self) -> State:
        return self._parts.checkpoints.stage(self._parts.trainer.state())

    async def _finish(self) -> None:
        """Nothing trained is left unpublished or unsaved."""
        if self._published_step < self._position.step:
            await self._publish()
        if self._saved_step < self._position.step:
            await self._save()
        await self._published()
        await self._saved()
