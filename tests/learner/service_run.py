"""What the tests of the learner service share: a run on a broker, its recorded batches, the ranks' processes."""

import asyncio
import json
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from schemas import (
    BatchPlanned,
    BlobRef,
    Event,
    NDArray,
    PlannedSequence,
    Ref,
    RolloutCompleted,
    Routes,
    StepCompleted,
    WeightsPublished,
)
from streams.blobs.store import BlobStore
from streams.context import RunContext
from streams.log.clients import Log, Writer
from streams.record import Output
from tests.builders import batch_planned, planned_sequence, rollout_completed
from tests.run_logs import everything, log_at, make_topics

PARTITIONS = 2
GROUP = "g.0"
DEADLINE_S = 120.0

GIVEN = {3: (1, 3), 6: (2, 3)}
"""Which response tokens of a rollout, by its index in a batch, were not sampled: first, and one after the last."""


@dataclass
class Run:
    """One run on the broker: what the other stages would have written, and the ranks' processes."""

    zygote: Any
    context: RunContext
    settings: dict[str, Any]
    env: dict[str, str] = field(default_factory=dict)
    planned: list[PlannedSequence] = field(default_factory=list)

    @property
    def log(self) -> Log:
        return log_at(self.context.bootstrap, self.context.run, PARTITIONS)

    @contextmanager
    def ranks(self) -> Iterator[list[Any]]:
        """All ranks; killed at the end if they still run."""
        children = [self.start(rank) for rank in range(self.context.replicas)]
        try:
            yield children
        finally:
            for child in children:
                child.kill()
                child.wait(10)

    def start(self, rank: int) -> Any:
        values = {**vars_of(self.context), "ordinal": rank}
        out = self.context.directory / f"rank-{rank}.log"
        return self.zygote.start("service", [json.dumps(values), json.dumps(self.settings)], out, out, **self.env)

    def complaint(self, rank: int) -> str:
        return (self.context.directory / f"rank-{rank}.log").read_text()

    async def events(self, topic: str) -> list[Event]:
        return await everything(self.log, topic)

    async def records(self, topic: str, count: int, children: Sequence[Any]) -> None:
        """Wait until `topic` holds `count` records."""
        async with asyncio.timeout(DEADLINE_S):
            while len(await self.events(topic)) < count:
                assert all(child.poll() is None for child in children), self.complaint(0) + self.complaint(1)
                await asyncio.sleep(0.05)

    async def steps(self, count: int, children: Sequence[Any]) -> list[StepCompleted]:
        """Wait until `count` different steps are done."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                found = [event for event in await self.events("steps") if isinstance(event, StepCompleted)]
                if len({step.step for step in found}) >= count:
                    return found
                assert all(child.poll() is None for child in children), self.complaint(0) + self.complaint(1)
                await asyncio.sleep(0.1)

    async def another(self, name: str, *, replicas: int | None = None, **settings: Any) -> "Run":
        """A run under another name, with topics and a directory of its own; `settings` are changed."""
        directory = self.context.directory / name
        directory.mkdir()
        context = replace(
            self.context,
            run=f"{self.context.run}{name}",
            directory=directory,
            replicas=replicas or self.context.replicas,
        )
        other = Run(self.zygote, context, {**self.settings, **settings})
        await asyncio.to_thread(make_topics, other.log)
        return other

    async def published(self, version: int, children: Sequence[Any]) -> WeightsPublished:
        async with asyncio.timeout(DEADLINE_S):
            while True:
                assert all(child.poll() is None for child in children), self.complaint(0) + self.complaint(1)
                for event in await self.events("weights"):
                    if isinstance(event, WeightsPublished) and event.version == version:
                        return event
                await asyncio.sleep(0.1)


def vars_of(context: RunContext) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(context).items()}


def completed(index: int, seed: int, blobs: BlobStore | None = None) -> RolloutCompleted:
    """A rollout of the test's model; with `blobs` its routes lie there. Of two in eight not every token was sampled."""
    random = np.random.default_rng([seed, index])
    prompt, response = 3, 2 + index % 5
    routes = np.argsort(random.random((prompt + response, 2, 4)), axis=-1)[..., :2].astype(np.uint8)
    routes[-1] = 255
    blob = None if blobs is None else blobs.put(f"routes/{index}", routes.tobytes())
    data = NDArray.of(routes) if blob is None else None
    sampled = np.ones(response, np.uint8)
    if index in GIVEN:
        sampled[slice(*GIVEN[index])] = 0
    return rollout_completed(
        GROUP,
        index,
        rollout_id=f"{GROUP}.{seed}.{index}",
        prompt_id="g",
        samples=8,
        prompt=random.integers(3, 32, prompt),
        response=random.integers(3, 32, response),
        logprobs=NDArray.of(np.where(sampled, -3.4, 0.0).astype(np.float32)),
        loss_mask=NDArray.of(sampled) if index in GIVEN else None,
        routes=Routes(experts=4, shape=routes.shape, dtype="u1", sentinel=255, data=data, blob=blob),
    )


IN_ORDER = (((0, 1), (2, 3)), ((4, 5), (6, 7)))


async def write_batches(
    run: Run, first: int, count: int, corrupt: bool = False, ranks: tuple[tuple[tuple[int, ...], ...], ...] = IN_ORDER
) -> list[BatchPlanned]:
    """Batches of eight rollouts, two micro-batches a rank; `corrupt` damages three rollouts of each differently."""
    blobs = BlobStore(run.context.blob_uri)
    plans = []
    async with Writer(run.log) as writer:
        for batch in range(first, first + count):
            sequences = []
            for index in range(8):
                event = completed(index, batch, blobs if index % 2 else None)
                planned_id = event.rollout_id
                if corrupt and index == 1:
                    assert event.routes is not None and event.routes.blob is not None
                    wrong = BlobRef(uri=event.routes.blob.uri, size=event.routes.blob.size, digest="0" * 64)
                    event = msgspec.structs.replace(event, routes=msgspec.structs.replace(event.routes, blob=wrong))
                if corrupt and index == 2:
                    planned_id = "another"
                ref = await writer.write(Output("rollouts", event, key=GROUP))
                if corrupt and index == 4:
                    ref = Ref(ref.topic, 1 - ref.partition, ref.offset)
                sequences.append(
                    planned_sequence(
                        planned_id,
                        ref,
                        advantage=1.0 if index % 2 else -1.0,
                        reward=float(index % 2),
                        prompt_tokens=3,
                        response_tokens=event.response_ids.shape[0],
                        oldest_version=max(0, batch - 1),
                    )
                )
            plan = batch_planned(
                batch,
                groups=(GROUP,),
                sequences=tuple(sequences),
                ranks=ranks,
                token_budget=64,
                fill=0.75,
                imbalance=1.25,
            )
            await writer.write(Output("batches", plan))
            plans.append(plan)
    return plans


async def end(children: Sequence[Any]) -> list[int]:
    """SIGTERM to rank 0 alone, which passes it on to the others."""
    children[0].send_signal(signal.SIGTERM)
    return [await asyncio.to_thread(child.wait, DEADLINE_S) for child in children]
