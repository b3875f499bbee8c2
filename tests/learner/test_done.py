"""What the log says of steps that are done again: each is counted once, however often it was told."""

import uuid
from pathlib import Path

import pytest

from learner.done import Done, read_done
from schemas import Event, Ref, Rejected, StepCompleted, WeightsPublished
from streams.broker import Broker
from streams.context import RunContext
from streams.log import Log, LogSettings, Writer
from streams.record import Output
from tests.learner.service_run import PARTITIONS, make_topics


def step(number: int, *rejected: str) -> Output:
    event: Event = StepCompleted(
        step=number,
        batch=number - 1,
        batch_ref=Ref("batches", 0, number - 1),
        version=number,
        metrics={},
        rejected=tuple(Rejected(rollout_id=name, rollout=Ref("rollouts", 0, 0), reason="lost") for name in rejected),
        time_s=0.0,
    )
    return Output("steps", event)


def weights(version: int) -> Output:
    event: Event = WeightsPublished(
        version=version, kind="full", precision="bf16", files=(), tensors=0, parent_step=version, time_s=0.0
    )
    return Output("weights", event, key=str(version))


FIRST = [step(1, "a"), weights(1), step(2, "b"), weights(2), step(3, "c"), weights(3)]


@pytest.mark.parametrize("again", [[], [step(2, "b"), weights(2)], [step(2, "b"), weights(2), step(2, "b"), step(3)]])
async def test_a_step_told_again_changes_nothing(log_broker: Broker, tmp_path: Path, again: list[Output]) -> None:
    context = RunContext(f"r{uuid.uuid4().hex[:8]}", tmp_path, log_broker.bootstrap, PARTITIONS, tmp_path.as_uri())
    await make_topics(context)
    log = Log(LogSettings(context.bootstrap, context.run, PARTITIONS), "test")
    async with Writer(log) as writer:
        for output in [*FIRST, *again]:
            await writer.write(output)
    assert await read_done(log, next_batch=1) == Done(published=3, rejected={"b": "lost", "c": "lost"})
