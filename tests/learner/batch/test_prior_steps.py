"""What the log holds of steps that are done again: each counts once, however often it was published."""

import pytest

from learner.batch.prior_steps import PriorSteps, read_prior_steps
from schemas import Event, Ref, Rejected
from streams.broker import Broker
from streams.log.clients import Log
from streams.record import Output
from tests.builders import step_completed, weights_published
from tests.learner.service_run import PARTITIONS
from tests.run_logs import new_run, write


def step(number: int, *rejected: str) -> Output:
    event: Event = step_completed(
        number,
        batch=number - 1,
        batch_ref=Ref("batches", 0, number - 1),
        version=number,
        rejected=tuple(Rejected(rollout_id=name, rollout=Ref("rollouts", 0, 0), reason="lost") for name in rejected),
    )
    return Output("steps", event)


def weights(version: int) -> Output:
    event: Event = weights_published(version)
    return Output("weights", event, key=str(version))


FIRST = [step(1, "a"), weights(1), step(2, "b"), weights(2), step(3, "c"), weights(3)]


@pytest.fixture
def log(log_broker: Broker) -> Log:
    return new_run(log_broker, PARTITIONS)


async def publish(log: Log, outputs: list[Output], junk: int = 0) -> None:
    """Write `outputs`, and then undecodable records on both topics."""
    await write(log, *outputs)
    producer = log.producer()
    await producer.start()
    for topic in ("steps", "weights"):
        for number in range(junk):
            await producer.send(log.full(topic), value=b"\xc1 junk", key=b"%d" % number, partition=0)
    await producer.stop()


@pytest.mark.parametrize("again", [[], [step(2, "b"), weights(2)], [step(2, "b"), weights(2), step(2, "b"), step(3)]])
async def test_a_re_published_step_changes_nothing(log: Log, again: list[Output]) -> None:
    await publish(log, [*FIRST, *again])
    assert await read_prior_steps(log, next_batch=1, unsaved=3) == PriorSteps(
        published=3, rejected={"b": "lost", "c": "lost"}
    )


async def test_what_was_rejected_is_found_behind_junk(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("learner.batch.prior_steps._STEPS_TAIL", 5)
    monkeypatch.setattr("learner.batch.prior_steps._WEIGHTS_TAIL", 5)
    await publish(log, FIRST, junk=200)
    assert await read_prior_steps(log, next_batch=1, unsaved=3) == PriorSteps(
        published=3, rejected={"b": "lost", "c": "lost"}
    )


@pytest.mark.parametrize("unsaved", [4, 100])
async def test_steps_beyond_a_checkpoint_are_found_behind_those_of_the_next_process(
    log: Log, monkeypatch: pytest.MonkeyPatch, unsaved: int
) -> None:
    """One process did batches 0 to 23 and had saved 20; a second resumed there, did two, saved, and was killed."""
    monkeypatch.setattr("learner.batch.prior_steps._STEPS_TAIL", 1)
    first = [step(number + 1, f"r{number}") for number in range(24)]
    again = [step(21, "r20"), step(22, "r21")]
    await publish(log, [*first, *again])
    assert set((await read_prior_steps(log, next_batch=22, unsaved=unsaved)).rejected) == {"r22", "r23"}
