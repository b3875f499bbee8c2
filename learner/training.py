"""The life of one rank: meet, restore, then batch after batch until the run stops.

    feed ──LoadedBatch──▶ agree ─▶ train ─▶ StepCompleted ─▶ gather ─▶ WeightsPublished (beside the next batch)
                                                        └─▶ snapshot ─▶ checkpoint     (beside the next batch)

Ranks agree before each batch that all go on with the same one, so that a SIGTERM to one ends all at the same step.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from learner.agreement import Intent, agreed
from learner.checkpoints import Checkpoints, Position, Shard, fingerprint
from learner.distributed import Ranks, join, leave
from learner.done import Done, decode_done, read_done
from learner.errors import RankError
from learner.feed import Feed, LoadedBatch, Reading
from learner.lanes import Lane
from learner.lifeline import Lifeline
from learner.policy import build_policy, mixed_precision, model_shape, read_config, stored_tensors
from learner.publisher import Publisher
from learner.settings import LearnerSettings
from learner.step import StepReport, Trainer, build_objective
from learner.weights import gather
from schemas import Rejected, StepCompleted
from streams import names, tracing
from streams.faults import reach
from streams.scope import Scope

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
_VERDICT_S = 5.0


class Training:
    """Everything of one rank. `run` returns when the service is asked to stop."""

    def __init__(self, scope: Scope, settings: LearnerSettings) -> None:
        self._scope = scope
        self._settings = settings
        self._rank = scope.context.ordinal
        self._training = Lane("training")
        self._pulse = Lane("pulse")
        self._background = Lane("background")
        self._lost = asyncio.Event()
        self._position = Position()
        self._saved_step = 0
        self._published_step = 0
        self._training_since: tuple[int, float] | None = None
        self._publishing: asyncio.Task[None] | None = None
        self._saving: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """See the class. LearnerError, StreamsError: this rank cannot go on."""
        settings, scope = self._settings, self._scope
        lifeline = Lifeline()
        scope.spawn(self._mourn(lifeline), "lifeline")
        scope.add_status(self._waits)
        async with scope.wait("for the other ranks and the model", 2 * settings.rendezvous_timeout_s):
            await self._training.run(partial(self._start, lifeline))
        scope.spawn(self._beat(), "heartbeat")
        await self._background.run(self._restore)
        done = await self._done()
        self._published_step = min(self._position.step, done.published)
        reading = Reading(self._rank, settings.ranks, self._shape, settings.fetch_timeout_s, done.rejected)
        self._feed = Feed(scope, reading, self._position.offset, self._position.next_batch)
        scope.spawn(self._feed.fill(), "feed")
        self._publisher: Publisher | None = None
        try:
            if self._rank == 0:
                publisher = Publisher(scope, self._policy.model, self._stored, settings.max_file_bytes)
                async with publisher:
                    self._publisher = publisher
                    await self._serve()
            else:
                await self._serve()
        finally:
            for lane in (self._training, self._pulse, self._background):
                lane.close()
        leave()

    def _start(self, lifeline: Lifeline) -> None:
        """Blocking: meet the other ranks, load and shard the model."""
        settings, context = self._settings, self._scope.context
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        # What the user got wrong is said before the ranks meet, and by each of them.
        directory = Path(settings.model)
        read_config(directory)
        mixed_precision(settings.precision, "cuda" if torch.cuda.is_available() else "cpu")
        build_objective(settings)
        torch.set_num_threads(settings.threads)
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.manual_seed(context.seed)
        self._ranks: Ranks = join(
            self._rank,
            settings.ranks,
            context.directory,
            settings.master_port,
            settings.rendezvous_timeout_s,
            settings.collective_timeout_s,
            lifeline,
        )
        self._stored = stored_tensors(directory)
        self._policy = build_policy(directory, settings, self._ranks.mesh)
        self._shape = model_shape(self._policy.model, settings.max_sequence_tokens)
        self._trainer = Trainer(self._policy, self._shape, settings, self._ranks)
        model = f"{context.run}/{fingerprint(self._stored)}"
        self._checkpoints = Checkpoints(
            context.directory / "checkpoints", model, settings.keep_checkpoints, self._ranks
        )

    def _restore(self) -> None:
        """Blocking: go on from the newest whole checkpoint, if there is one."""
        found = self._checkpoints.newest()
        if found is None:
            return
        path, manifest = found
        self._checkpoints.load(path, manifest, self._trainer.shards())
        self._trainer.restored(manifest.position.updates)
        torch.set_rng_state(self._checkpoints.rng_state(path, manifest))
        self._position = manifest.position
        self._saved_step = self._position.step
        logger.info("goes on from %s", path)

    async def _done(self) -> Done:
        """What rank 0 reads on the log: all ranks go by the same."""
        read = (await read_done(self._scope.log, self._position.next_batch)).encode() if self._rank == 0 else b""
        return decode_done((await self._collective(partial(self._ranks.exchange, read)))[0])

    async def _serve(self) -> None:
        self._scope.ready()
        limit = self._settings.max_steps
        while limit is None or self._position.step < limit:
            if not await self._advance():
                break
        else:
            await self._finish()
            logger.info("did %d steps, idles until it is told to stop", self._position.step)
            await self._scope.stopping.wait()
            await self._agree(None)
        await self._finish()

    async def _advance(self) -> bool:
        """One batch; False where the ranks agreed to stop."""
        waiting = time.monotonic()
        batch = await self._feed.next()
        waited_s = time.monotonic() - waiting
        rejected = await self._agree(batch)
        if rejected is None or batch is None:
            return False
        started = time.monotonic()
        step = self._position.step
        attributes = {names.STEP: step, names.VERSION: step + 1}
        self._training_since = (batch.plan.batch, started)
        with tracing.span(names.TRAIN, links=[batch.record], attributes=attributes):
            report = await self._collective(partial(self._trainer.train, batch.micro_batches, step))
        self._training_since = None
        self._position = Position(
            step=step + 1,
            updates=self._trainer.updates,
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
        """Run `work` in the training thread. Where another rank's end breaks it, the heartbeat says whose it was."""
        try:
            return await self._training.run(work)
        except (RankError, RuntimeError):
            with suppress(TimeoutError):
                async with asyncio.timeout(_VERDICT_S):
                    await self._lost.wait()
            raise

    async def _agree(self, batch: LoadedBatch | None) -> tuple[Rejected, ...] | None:
        """What all ranks together reject of the batch, or None where one of them stops."""
        intent = Intent(None) if batch is None else Intent(batch.plan.batch, batch.rejected)
        rejected = agreed(await self._collective(partial(self._ranks.exchange, intent.encode())))
        if rejected is None:
            self._scope.stopping.set()
        return rejected

    async def _announce(
        self, batch: LoadedBatch, rejected: tuple[Rejected, ...], report: StepReport, wall_s: float, waited_s: float
    ) -> None:
        for name, value in report.metrics.items():
            self._scope.gauge(name, value)
        self._scope.gauge("step", self._position.step)
        self._scope.gauge("idle_share", waited_s / (waited_s + wall_s))
        if self._publisher is not None:
            event = StepCompleted(
                step=self._position.step,
                batch=batch.plan.batch,
                batch_ref=batch.record.ref,
                version=self._position.step,
                metrics=report.metrics,
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
        whole = await self._collective(partial(gather, self._policy, self._rank))
        self._published_step = self._position.step
        if self._publisher is not None:
            await self._published()
            record = None if batch is None else batch.record
            uploading = self._publisher.weights(whole, self._position.step, record)
            self._publishing = self._scope.spawn(uploading, f"publish v{self._position.step}")

    async def _published(self) -> None:
        if self._publishing is not None:
            await self._publishing

    async def _save(self) -> None:
        """Copy now, write beside what follows; weights of the same step are out before it counts as done."""
        shards = await self._training.run(self._snapshot)
        await self._saved()
        await self._published()
        self._saved_step = self._position.step
        work = partial(self._checkpoints.save, self._position, shards)
        self._saving = self._scope.spawn(self._background.run(work), f"checkpoint {self._position.step}")

    async def _saved(self) -> None:
        if self._saving is not None:
            await self._saving

    def _snapshot(self) -> dict[str, Shard]:
        return {name: replace(shard, local=shard.local.cpu().clone()) for name, shard in self._trainer.shards().items()}

    async def _finish(self) -> None:
        """Nothing trained is left unpublished or unsaved."""
        if self._published_step < self._position.step:
            await self._publish()
        if self._saved_step < self._position.step:
            await self._save()
        await self._published()
        await self._saved()

    async def _mourn(self, lifeline: Lifeline) -> None:
        """A rank that is gone takes the others with it at once, whatever they are waiting for."""
        rank = await lifeline.lost()
        if not self._scope.stopping.is_set():
            self._lost.set()
            raise RankError(f"learner rank {rank} is gone: its connection has ended (seen by rank {self._rank})")

    async def _beat(self) -> None:
        """Signs of life, beside everything else; they also carry one rank's SIGTERM to the others."""
        scope, settings = self._scope, self._settings
        while True:
            try:
                stopping = await self._pulse.run(partial(self._ranks.beat, scope.stopping.is_set()))
            except RankError:
                # On the way out the first rank to leave looks like a dead one; the last agreement has been had.
                if scope.stopping.is_set():
                    return
                # This error ends the service before the training thread's, which it leaves time for.
                self._lost.set()
                raise
            if stopping:
                scope.stopping.set()
            await asyncio.sleep(settings.heartbeat_s)
