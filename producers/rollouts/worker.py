"""One request becomes its rollouts, each written the moment it completes."""

import asyncio
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from producers.rollouts.already_written import AlreadyWritten
from producers.rollouts.engine.errors import EngineDied, PromptRefused
from producers.rollouts.engine.generation import Generation
from producers.rollouts.engine.supervised import SupervisedEngine
from producers.rollouts.event import completed, is_finite, routes_on_wire
from producers.rollouts.model_facts import engine_info, experts_of
from producers.rollouts.prompt_encoder import PromptEncoder
from producers.rollouts.quarantine import Quarantine
from producers.rollouts.settings import ProducerSettings
from schemas.events import Event, GroupRequested, RolloutCompleted
from schemas.identity import rollout_id, sampling_seed
from schemas.parts import Sampling
from streams.errors import Poison
from streams.faults import reach
from streams.record import Output, Record
from streams.runtime.service_context import ServiceContext
from streams.stages.worker import Emit
from streams.telemetry import names, tracing

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Job:
    """What the rollouts of one request share."""

    request: GroupRequested
    record: Record
    prompt_ids: npt.NDArray[np.uint32]
    tokens: list[int]
    sampling: Sampling
    received_s: float
    attempts: dict[int, int]
    """Which attempt is the next, by the indices of the rollouts that are still to be written."""


class RolloutWorker:
    """Generates requests, many at a time; at least once. Counts what it did."""

    def __init__(
        self, service: ServiceContext, settings: ProducerSettings, engine: SupervisedEngine, producer_id: str
    ) -> None:
        self._context = service.run_context
        self._blobs = service.blobs
        self._settings = settings
        self._engine = engine
        self._producer_id = producer_id
        self._encoder = PromptEncoder(Path(settings.model))
        self._experts = experts_of(Path(settings.model))
        self._info = engine_info(settings)
        self._already_written = AlreadyWritten(service.run_context, service.started_s)
        self.quarantine = Quarantine(settings.max_num_seqs, engine.up_s)
        self._generating: dict[str, float] = {}
        self._sent_s = time.time()
        self.rollouts = 0
        self.tokens = 0

    @property
    def in_flight(self) -> int:
        """Rollouts that the engine was given and has not finished."""
        return len(self._generating)

    async def handle(self, event: Event, record: Record, emit: Emit) -> None:
        """Generate and write every rollout of a request that is not on the log yet; returns when all are acknowledged.

        Rollouts that were in flight when the engine died are generated again as the next attempt, by the next engine.
        Poison: the prompt can never be generated from, or kills the engine. EngineDied: any prompt does.
        """
        assert isinstance(event, GroupRequested), "the stage takes requests alone"
        received_s = time.time()
        # A held-back group is measured late rather than never: a round is only complete with all of its groups.
        if event.deadline_s <= received_s and event.purpose == "train":
            late_s = received_s - event.deadline_s
            logger.warning("group %s is not generated: its deadline passed %.0f s ago", event.group_id, late_s)
            return
        job = await self._job(event, record, received_s)
        written = await self._already_written.written(event, record)
        if 0 < len(written) < event.samples:
            logger.info("group %s: %d of %d rollouts are on the log", event.group_id, len(written), event.samples)
        job.attempts.update({index: 0 for index in range(event.samples) if index not in written})
        tasks = [asyncio.ensure_future(self._rollout(job, index, emit)) for index in list(job.attempts)]
        try:
            await asyncio.gather(*tasks)
        except PromptRefused as error:
            raise Poison(str(error)) from error
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def waits(self) -> list[str]:
        """For `status`: what is in flight since when, and when something was sent last."""
        lines = self.quarantine.waits()
        if self._generating:
            now_s = time.time()
            oldest = min(self._generating, key=self._generating.__getitem__)
            lines.append(
                f"{len(self._generating)} rollouts in flight, the oldest {oldest} since "
                f"{now_s - self._generating[oldest]:.0f} s; has not sent since {now_s - self._sent_s:.0f} s"
            )
        return lines

    async def _job(self, request: GroupRequested, record: Record, received_s: float) -> _Job:
        if request.messages is None:
            ids = self._encoder.encode(request.prompt, None)
        else:
            # The first chat prompt loads transformers, which takes seconds.
            ids = await asyncio.to_thread(self._encoder.encode, None, request.messages)
        room = self._settings.max_model_len - len(ids)
        if room < 1:
            raise Poison(
                f"the prompt's {len(ids)} tokens leave no room for a response in "
                f"max_model_len {self._settings.max_model_len}"
            )
        sampling = request.sampling
        if sampling.max_tokens > room:
            sampling = msgspec.structs.replace(sampling, max_tokens=room)
        return _Job(request, record, ids, ids.tolist(), sampling, received_s, {})

    async def _rollout(self, job: _Job, index: int, emit: Emit) -> None:
        """Generate and write one rollout, by as many engines as it takes."""
        name = rollout_id(job.request.group_id, index)
        while index in job.attempts:
            async with self.quarantine.attempt(name, job.request.group_id) as attempt:
                incarnation = await self._engine.available()
                try:
                    await self._generate_and_write(job, index, name, emit)
                except EngineDied as error:
                    logger.debug("rollout %s attempt %d is lost: %s", name, job.attempts[index], error)
                    job.attempts[index] += 1
                    attempt.lost, attempt.reason = incarnation, f"it {self._engine.last_failure}"

    async def _generate_and_write(self, job: _Job, index: int, name: str, emit: Emit) -> None:
        with tracing.span(names.SAMPLE, attributes={names.ROLLOUT: name, names.GROUP: job.request.group_id}) as span:
            generation = await self._generate(job, index, name)
            span.set_attribute(names.TOKENS, len(generation.response_ids))
            span.set_attribute(names.VERSION, generation.spans[-1].version)
            await emit(Output("rollouts", await self._event(job, index, name, generation), key=job.request.group_id))
        reach("rollouts.written")
        del job.attempts[index]
        self.rollouts += 1
        self.tokens += len(generation.response_ids)
        self._sent_s = time.time()

    async def _event(self, job: _Job, index: int, name: str, generation: Generation) -> RolloutCompleted:
        routes = None
        if generation.routes is not None:
            limit = self._context.inline_max_bytes
            routes = await routes_on_wire(name, generation.routes, self._experts, self._blobs, limit)
        return completed(
            job.request,
            job.record.ref,
            generation,
            index=index,
            attempt=job.attempts[index],
            prompt_ids=job.prompt_ids,
            routes=routes,
            producer_id=self._producer_id,
            engine=self._info,
            received_s=job.received_s,
            now_s=time.time(),
        )

    async def _generate(self, job: _Job, index: int, name: str) -> Generation:
        """A generation whose log-probs are finite. EngineDied; Poison: `max_attempts` of them were not."""
        for _ in range(self._settings.max_attempts):
            attempt = job.attempts[index]
            seed = sampling_seed(name, attempt, self._context.seed) if self._settings.seeded else None
            self._generating[name] = time.time()
            try:
                generation = await self._engine.generate(job.tokens, job.sampling, f"{name}.{attempt}", seed=seed)
            finally:
                del self._generating[name]
            if is_finite(generation):
                return generation
            logger.warning("rollout %s attempt %d has log-probs that are not finite: generating again", name, attempt)
            job.attempts[index] += 1
        raise Poison(f"rollout {name} had log-probs that are not finite in {self._settings.max_attempts} attempts")
