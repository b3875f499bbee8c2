"""Two ranks of the service on a real broker: batches in, steps and weights out; killed and started again."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learner.service import main
from learner.settings import LearnerSettings
from schemas import (
    TOPICS,
    BatchPlanned,
    BlobRef,
    DeadLetter,
    EngineInfo,
    Event,
    NDArray,
    PlannedSequence,
    Ref,
    RolloutCompleted,
    RolloutTimings,
    Routes,
    Sampling,
    StepCompleted,
    WeightSpan,
    WeightsPublished,
    decode,
)
from streams.admin import TopicSpec, create_topics
from streams.blobs import BlobStore
from streams.broker import Broker
from streams.context import RunContext
from streams.errors import ConfigurationError
from streams.log import Log, LogSettings, Writer
from streams.recall import read_to_end
from streams.record import Output
from streams.scope import Scope

PROGRAM = Path(__file__).with_name("service_program.py")
ROOT = Path(__file__).parents[2]
PARTITIONS = 2
GROUP = "g.0"
DEADLINE_S = 120.0


@dataclass
class Run:
    """One run on the broker: what the other stages would have written, and the ranks' processes."""

    context: RunContext
    settings: dict[str, Any]
    planned: list[PlannedSequence] = field(default_factory=list)

    @property
    def log(self) -> Log:
        return Log(LogSettings(self.context.bootstrap, self.context.run, PARTITIONS), "test")

    @contextmanager
    def ranks(self) -> Iterator[list[subprocess.Popen[str]]]:
        """Both ranks; killed at the end if they still live."""
        children = [self.start(rank) for rank in range(2)]
        try:
            yield children
        finally:
            for child in children:
                child.kill()
                child.wait()

    def start(self, rank: int) -> subprocess.Popen[str]:
        told = {**vars_of(self.context), "ordinal": rank}
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(PROGRAM), json.dumps(told), json.dumps(self.settings)]
        with (self.context.directory / f"rank-{rank}.log").open("a") as errors:
            return subprocess.Popen(command, stderr=errors, text=True, env=environment)

    def complaint(self, rank: int) -> str:
        return (self.context.directory / f"rank-{rank}.log").read_text()

    async def events(self, topic: str) -> list[Event]:
        records = await read_to_end(self.log, {(topic, p): None for p in self.log.partitions(topic)})
        return [decode(record.value) for record in records]

    async def steps(self, count: int, children: Sequence[subprocess.Popen[str]]) -> list[StepCompleted]:
        """Wait until `count` different steps are done."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                found = [event for event in await self.events("steps") if isinstance(event, StepCompleted)]
                if len({step.step for step in found}) >= count:
                    return found
                assert all(child.poll() is None for child in children), self.complaint(0) + self.complaint(1)
                await asyncio.sleep(0.1)

    async def published(self, version: int, children: Sequence[subprocess.Popen[str]]) -> WeightsPublished:
        async with asyncio.timeout(DEADLINE_S):
            while True:
                assert all(child.poll() is None for child in children), self.complaint(0) + self.complaint(1)
                for event in await self.events("weights"):
                    if isinstance(event, WeightsPublished) and event.version == version:
                        return event
                await asyncio.sleep(0.1)


def vars_of(context: RunContext) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(context).items()}


@pytest.fixture
async def run(log_broker: Broker, learner_directory: Path, tmp_path: Path) -> Run:
    name = f"r{uuid.uuid4().hex[:8]}"
    context = RunContext(name, tmp_path, log_broker.bootstrap, PARTITIONS, (tmp_path / "blobs").as_uri(), replicas=2)
    await make_topics(context)
    settings = {
        "model": str(learner_directory / "model"),
        "checkpoint_every": 2,
        "warmup_steps": 0,
        "learning_rate": 1e-2,
        "collective_timeout_s": 30.0,
        "fetch_timeout_s": 3.0,
    }
    return Run(context, settings)


async def make_topics(context: RunContext) -> None:
    specs = [TopicSpec(topic.on(context.run), PARTITIONS if topic.sharded else 1) for topic in TOPICS.values()]
    await asyncio.to_thread(create_topics, context.bootstrap, specs)


def completed(index: int, seed: int, blobs: BlobStore | None = None) -> RolloutCompleted:
    """A rollout of the test's model; with `blobs` its routes lie there."""
    random = np.random.default_rng([seed, index])
    prompt, response = 3, 2 + index % 5
    routes = np.argsort(random.random((prompt + response, 2, 4)), axis=-1)[..., :2].astype(np.uint8)
    routes[-1] = 255
    blob = None if blobs is None else blobs.put(f"routes/{index}", routes.tobytes())
    data = NDArray.of(routes) if blob is None else None
    return RolloutCompleted(
        rollout_id=f"{GROUP}.{seed}.{index}",
        group_id=GROUP,
        prompt_id="g",
        index=index,
        attempt=0,
        producer_id="p",
        request=Ref("prompts", 0, 0),
        task="t",
        samples=8,
        verifier="v",
        reference="1",
        deadline_s=0.0,
        prompt_ids=NDArray.of(random.integers(3, 32, prompt).astype(np.uint32)),
        response_ids=NDArray.of(random.integers(3, 32, response).astype(np.uint32)),
        logprobs=NDArray.of(np.full(response, -3.4, dtype=np.float32)),
        spans=(WeightSpan(0, 0),),
        sampling=Sampling(max_tokens=8),
        finish_reason="stop",
        engine=EngineInfo(name="e", version="1", model="m"),
        timings=RolloutTimings(received_s=0, started_s=0, first_token_s=0, finished_s=0),
        requested_s=0.0,
        time_s=0.0,
        routes=Routes(experts=4, shape=routes.shape, dtype="u1", sentinel=255, data=data, blob=blob),
    )


async def write_batches(run: Run, first: int, count: int, spoil: bool = False) -> list[BatchPlanned]:
    """Batches of eight rollouts, two micro-batches a rank; `spoil` ruins three rollouts of each in different ways."""
    blobs = BlobStore(run.context.blob_uri)
    plans = []
    async with Writer(run.log) as writer:
        for batch in range(first, first + count):
            sequences = []
            for index in range(8):
                event = completed(index, batch, blobs if index % 2 else None)
                planned_id = event.rollout_id
                if spoil and index == 1:
                    assert event.routes is not None and event.routes.blob is not None
                    wrong = BlobRef(uri=event.routes.blob.uri, size=event.routes.blob.size, digest="0" * 64)
                    event = structs_replace(event, routes=structs_replace(event.routes, blob=wrong))
                if spoil and index == 2:
                    planned_id = "another"
                ref = await writer.write(Output("rollouts", event, key=GROUP))
                if spoil and index == 4:
                    ref = Ref(ref.topic, 1 - ref.partition, ref.offset)
                sequences.append(
                    PlannedSequence(
                        rollout_id=planned_id,
                        rollout=ref,
                        advantage=1.0 if index % 2 else -1.0,
                        reward=float(index % 2),
                        prompt_tokens=3,
                        response_tokens=event.response_ids.shape[0],
                        oldest_version=max(0, batch - 1),
                    )
                )
            plan = BatchPlanned(
                batch=batch,
                groups=(GROUP,),
                sequences=tuple(sequences),
                ranks=(((0, 1), (2, 3)), ((4, 5), (6, 7))),
                token_budget=64,
                time_s=0.0,
            )
            await writer.write(Output("batches", plan))
            plans.append(plan)
    return plans


def structs_replace(event: Any, **changes: Any) -> Any:
    import msgspec

    return msgspec.structs.replace(event, **changes)


async def end(children: Sequence[subprocess.Popen[str]]) -> list[int]:
    """SIGTERM to rank 0 alone: it tells the other."""
    children[0].send_signal(signal.SIGTERM)
    return [await asyncio.to_thread(child.wait, 30) for child in children]


async def test_batches_become_steps_and_weights_and_a_kill_changes_nothing(run: Run, tmp_path: Path) -> None:
    await write_batches(run, 0, 5)
    with run.ranks() as children:
        steps = await run.steps(3, children)
        children[1].kill()
        # The other rank must not wait for its time-out.
        assert await asyncio.to_thread(children[0].wait, 15) == 1
    assert "learner rank 1 is gone" in run.complaint(0).splitlines()[-1], run.complaint(0)
    run.settings["max_steps"] = 5
    with run.ranks() as children:
        steps = await run.steps(5, children)
        interrupted = await run.published(5, children)
        assert await end(children) == [0, 0], run.complaint(0) + run.complaint(1)
    assert [step.batch_ref.topic for step in steps] == ["batches"] * len(steps)
    first: dict[int, StepCompleted] = {}
    for step in steps:
        same = first.setdefault(step.step, step)
        assert (same.batch, same.version, same.tokens) == (step.batch, step.version, step.tokens)
        assert step.version == step.step == step.batch + 1
        assert step.metrics["loss"] == same.metrics["loss"]
        assert step.sequences == 8 and not step.rejected
    assert {"replay/k3_on", "replay/k3_off", "replay/flip_share", "grad_norm", "entropy/high"} <= steps[
        0
    ].metrics.keys()

    again = replace(run.context, run=f"{run.context.run}b", directory=tmp_path / "again")
    again.directory.mkdir()
    await make_topics(again)
    other = Run(again, {**run.settings, "max_steps": 6})
    await write_batches(other, 0, 5)
    (spoilt,) = await write_batches(other, 5, 1, spoil=True)
    with other.ranks() as children:
        uninterrupted = await other.published(5, children)
        steps = await other.steps(6, children)
        await other.published(6, children)
        assert await end(children) == [0, 0], other.complaint(0) + other.complaint(1)
    assert [file.blob.digest for file in uninterrupted.files] == [file.blob.digest for file in interrupted.files]
    await check_rejected(other, spoilt, steps[-1])


async def check_rejected(run: Run, plan: BatchPlanned, step: StepCompleted) -> None:
    """A wrong digest, a wrong id and a missing record are rejected by name, and the rest is trained on."""
    ids = [sequence.rollout_id for sequence in plan.sequences]
    reasons = {rejected.rollout_id: rejected.reason for rejected in step.rejected}
    assert set(reasons) == {ids[1], "another", ids[4]}
    assert "digest" in reasons[ids[1]] and "not another" in reasons["another"] and "not on the log" in reasons[ids[4]]
    assert step.sequences == 5 and step.tokens == sum(
        sequence.response_tokens for index, sequence in enumerate(plan.sequences) if index not in (1, 2, 4)
    )
    letters = [event for event in await run.events("dead-letters") if isinstance(event, DeadLetter)]
    assert {letter.source for letter in letters} == {Ref(*plan.sequences[index].rollout) for index in (1, 2)}


async def test_a_model_of_another_family_is_the_users_mistake(learner_directory: Path, tmp_path: Path) -> None:
    model = tmp_path / "dense"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    context = RunContext("r", tmp_path, "127.0.0.1:1", PARTITIONS, (tmp_path / "blobs").as_uri())
    cases: dict[str, dict[str, Any]] = {
        "LlamaForCausalLM of model_type 'llama'; supported": {"model": str(model)},
        "no config.json": {"model": str(tmp_path)},
        "precision 'fp8' trains through transformer-engine on CUDA": {
            "model": str(learner_directory / "model"),
            "precision": "fp8",
        },
        "no setting 'beta'": {"model": str(learner_directory / "model"), "objective_settings": {"beta": 1}},
        "2 and 1 learner processes": {"model": str(model), "ranks": 2},
    }
    for sentence, changes in cases.items():
        log = Log(LogSettings(context.bootstrap, context.run, PARTITIONS), "test")
        async with asyncio.TaskGroup() as tasks:
            scope = Scope("learner", context, log, BlobStore(context.blob_uri), tasks)
            with pytest.raises(ConfigurationError, match=sentence):
                await main(scope, LearnerSettings(**{"ranks": 1, **changes}))
