"""A service on a run of its own, the records that stages read, and what they wrote."""

from schemas import (
    Ref,
)
from streams.record import Output
from tests.builders import rollout_scored, step_completed

PARTITIONS = 2


def scored(group: str, index: int) -> Output:
    event = rollout_scored(group, index, deadline_s=0.0)
    return Output("scores", event, key=group)


def step(number: int) -> Output:
    return Output(
        "steps",
        step_completed(number, batch_ref=Ref("batches", 0, 0), version=1),
    )
