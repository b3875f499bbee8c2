"""A recorded generation load: it stands where the rollout producer stands, without an engine.

Everything but the engine is the producer's own: the runner, the resumption of a predecessor's groups, the tokenizer,
the event, the claim check. What is "generated" is decided by the rollout's name and attempt, right in three of five.
"""

import asyncio
import random
import sys
import time
from pathlib import Path

import numpy as np

from deploy.config.run import load
from producers.rollouts.already_written import AlreadyWritten
from producers.rollouts.engine.generation import Generation
from producers.rollouts.event import completed, routes_on_wire
from producers.rollouts.prompt_encoder import PromptEncoder
from schemas import EngineInfo, Event, GroupRequested, StepCompleted, WeightSpan
from schemas.identity import rollout_id
from streams.context import RunContext
from streams.faults import reach
from streams.record import Output, Record
from streams.runtime.service import run_service
from streams.runtime.service_context import ServiceContext
from streams.stages.follower import follow
from streams.stages.worker import Emit, WorkerSpec, run_worker

LAYERS, TOP_K, EXPERTS = 2, 2, 16
_EOS = 1
_IN_FLIGHT = 32


def generate(request: GroupRequested, name: str, encoder: PromptEncoder, version: int) -> Generation:
    """What an engine would say, decided by `name`; routes u1 `[tokens, LAYERS, TOP_K]`."""
    draw = random.Random(name)
    assert isinstance(request.reference, dict), "running sums have a dictionary as reference"
    answer = int(request.reference["answer"]) + (0 if draw.random() < 0.6 else draw.randint(1, 9))
    prompt = encoder.encode(request.prompt, None)
    response = np.append(encoder.encode(f"={answer}", None), np.uint32(_EOS))
    generator = np.random.default_rng(draw.getrandbits(63))
    now_s = time.time()
    return Generation(
        response_ids=response,
        logprobs=generator.uniform(-2.0, 0.0, len(response)).astype(np.float32),
        routes=generator.integers(0, EXPERTS, (len(prompt) + len(response), LAYERS, TOP_K), dtype=np.uint8),
        spans=(WeightSpan(0, version),),
        finish_reason="stop",
        started_s=now_s,
        first_token_s=now_s,
        finished_s=now_s,
    )


class LoadWorker:
    """A worker over `prompts`; `version` is what the engine would have applied, `group_s` what a group takes it."""

    def __init__(self, service: ServiceContext, model: Path, group_s: float = 0.0) -> None:
        self._group_s = group_s
        self._service = service
        self._encoder = PromptEncoder(model)
        self._resumed = AlreadyWritten(service.run_context, service.started_s)
        self._engine = EngineInfo(name="recorded", version="1", model=str(model))
        self.version = 0

    def on_step(self, event: Event, record: Record) -> None:
        """A version of the weights is there."""
        if isinstance(event, StepCompleted):
            self.version = max(self.version, event.version)

    async def handle(self, event: Event, record: Record, emit: Emit) -> None:
        """Writes the rollouts of a request that a predecessor has not written."""
        assert isinstance(event, GroupRequested)
        received_s = time.time()
        if event.deadline_s <= received_s and event.purpose == "train":
            return
        written = await self._resumed.written(event, record)
        await asyncio.sleep(self._group_s)
        for index in range(event.samples):
            if index not in written:
                await self._rollout(event, record, index, received_s, emit)

    async def _rollout(
        self, request: GroupRequested, record: Record, index: int, received_s: float, emit: Emit
    ) -> None:
        name = rollout_id(request.group_id, index)
        await asyncio.sleep(random.Random(name).uniform(0.001, 0.02))  # an engine takes its time
        generation = generate(request, name, self._encoder, self.version)
        assert generation.routes is not None
        context = self._service.run_context
        blobs, limit = self._service.blobs, context.inline_max_bytes
        event = completed(
            request,
            record.ref,
            generation,
            index=index,
            attempt=0,
            prompt_ids=self._encoder.encode(request.prompt, None),
            routes=await routes_on_wire(name, generation.routes, EXPERTS, blobs, limit),
            producer_id=f"load-{context.ordinal}",
            engine=self._engine,
            received_s=received_s,
            now_s=time.time(),
        )
        await emit(Output("rollouts", event, key=request.group_id))
        reach("rollouts.written")


async def main(service: ServiceContext, model: Path, group_s: float = 0.0) -> None:
    """Serve until stopped; ready once the newest version is known."""
    worker = LoadWorker(service, model, group_s)
    caught_up = asyncio.Event()
    service.spawn(follow(service, ["steps"], on=worker.on_step, caught_up=caught_up), "follows steps")
    async with service.wait("for the newest version", 60.0):
        await caught_up.wait()
    spec = WorkerSpec(stage="producer", input="prompts", max_in_flight=_IN_FLIGHT, types=(GroupRequested,))
    await run_worker(service, spec, worker)


def context_of(directory: Path, ordinal: int, replicas: int, bootstrap: str) -> RunContext:
    """The place of a stand-in in the run of `directory`."""
    config = load(None, directory=directory)
    return RunContext(
        run=config.run.id,
        directory=config.directory,
        bootstrap=bootstrap,
        partitions=config.run.partitions,
        blob_uri=config.layout.blob_uri,
        ordinal=ordinal,
        replicas=replicas,
        inline_max_bytes=config.blobs.inline_max_bytes,
        seed=config.run.seed,
        drain_s=config.run.drain_s,
    )


if __name__ == "__main__":
    where, number, of, servers, *pace = sys.argv[1:]
    directory = Path(where)
    model = Path(load(None, directory=directory).model.path)
    context = context_of(directory, int(number), int(of), servers)
    sys.exit(run_service("producer", context, lambda service: main(service, model, *map(float, pace))))
