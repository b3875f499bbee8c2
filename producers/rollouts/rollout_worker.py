"""One request becomes its rollouts, each written the moment it completes."""

import asyncio
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from producers.rollouts.completion import completed, is_finite, routes_on_wire
from producers.rollouts.configuration import ProducerSettings
from producers.rollouts.engine import RolloutEngine
from producers.rollouts.errors import PromptRefused
from producers.rollouts.generation import Generation
from producers.rollouts.model_facts import engine_info, experts_of
from producers.rollouts.resumed import ResumedGroups
from producers.rollouts.tokenise import PromptEncoder
from schemas.events import Event, GroupRequested
from schemas.identity import rollout_id, sampling_seed
from schemas.parts import Sampling
from streams import names, tracing
from streams.errors import Poison
from streams.record import Output, Record
from streams.scope import Scope
from streams.worker import Emit

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


class RolloutWorker:
    """Generates requests, many at a time; at least once. Counts what it did."""

    def __init__(self, scope: Scope, settings: ProducerSettings, engine: RolloutEngine, producer_id: str) -> None:
        self._context = scope.context
        self._blobs = scope.blobs
        self._settings = settings
        self._engine = engine
        self._producer_id = producer_id
        self._encoder = PromptEncoder(Path(settings.model))
        self._experts = experts_of(Path(settings.model))
        self._info = engine_info(settings)
        self._resumed = ResumedGroups(scope.context, scope.started_s)
        self.in_flight = 0
        self.rollouts = 0
        self.tokens = 0

    async def handle(self, event: Event, record: Record, emit: Emit) -> None:
        """Generate and write every rollout of a request that is not on the log yet; returns when all are acknowledged.

        Poison: the prompt can never be generated from. EngineDied ends the service, and the request is taken again.
        """
        assert isinstance(event, GroupRequested), "the stage takes requests alone"
        received_s = time.time()
        if event.deadline_s <= received_s:
            late_s = received_s - event.deadline_s
            logger.warning("group %s is not generated: its deadline passed %.0f s ago", event.group_id, late_s)
            return
        job = await self._job(event, record, received_s)
        written = await self._resumed.written(event, record)
        if 0 < len(written) < event.samples:
            logger.info("group %s: %d of %d rollouts are on the log", event.group_id, len(written), event.samples)
        missing = [index for index in range(event.samples) if index not in written]
        tasks = [asyncio.ensure_future(self._rollout(job, index, emit)) for index in missing]
        try:
            await asyncio.gather(*tasks)
        except PromptRefused as error:
            raise Poison(str(error)) from error
        finally:
            for task in tasks:
                task.cancel()

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
        return _Job(request, record, ids, ids.tolist(), sampling, received_s)

    async def _rollout(self, job: _Job, index: int, emit: Emit) -> None:
        name = rollout_id(job.request.group_id, index)
        with tracing.span(names.SAMPLE, attributes={names.ROLLOUT: name, names.GROUP: job.request.group_id}) as span:
            generation, attempt = await self._generate(job, name)
            span.set_attribute(names.TOKENS, len(generation.response_ids))
            span.set_attribute(names.VERSION, generation.spans[-1].version)
            routes = None
            if generation.routes is not None:
                limit = self._context.inline_max_bytes
                routes = await routes_on_wire(name, generation.routes, self._experts, self._blobs, limit)
            event = completed(
                job.request,
                job.record.ref,
                generation,
                index=index,
                attempt=attempt,
                prompt_ids=job.prompt_ids,
                routes=routes,
                producer_id=self._producer_id,
                engine=self._info,
                received_s=job.received_s,
                now_s=time.time(),
            )
            await emit(Output("rollouts", event, key=job.request.group_id))
        self.rollouts += 1
        self.tokens += len(generation.response_ids)

    async def _generate(self, job: _Job, name: str) -> tuple[Generation, int]:
        """A generation whose log-probs are finite, and its attempt. Poison: `max_attempts` of them were not."""
        for attempt in range(self._settings.max_attempts):
            seed = sampling_seed(name, attempt, self._context.seed) if self._settings.seeded else None
            self.in_flight += 1
            try:
                generation = await self._engine.generate(job.tokens, job.sampling, f"{name}.{attempt}", seed=seed)
            finally:
                self.in_flight -= 1
            if is_finite(generation):
                return generation, attempt
            logger.warning("rollout %s attempt %d has log-probs that are not finite: generating again", name, attempt)
        raise Poison(f"rollout {name} had log-probs that are not finite in {self._settings.max_attempts} attempts")
