"""A service on a run of its own, the records that stages read, and what they wrote."""

from schemas import (
    Event,
    Ref,
    decode,
)
from streams.log.clients import Log
from streams.log.tail import read_to_end
from streams.record import Output
from tests.builders import rollout_scored, step_completed

PARTITIONS = 2


def scored(group: str, index: int) -> Output:
    event = rollout_scored(group, index, deadline_s=0.0)
    return Output("scores", event, key=group)


async def everything(log: Log, topic: str) -> list[Event]:
    records = await read_to_end(log, {(topic, p): None for p in log.partitions(topic)})
    return [decode(record.value) for record in records]


def step(number: int) -> Output:
    return Output(
        "steps",
        step_completed(number, batch_ref=Ref("batches", 0, 0), version=1),
    )
