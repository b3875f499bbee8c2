"""The batcher as a service: its numbers continue, whatever stands behind its last batch."""

import asyncio
from pathlib import Path

from consumers.batches import service as batch_service
from consumers.batches.settings import BatchSettings
from schemas import BatchPlanned, UndecodableError, decode
from streams.broker import Broker
from streams.log.clients import Log, Writer
from streams.record import Output
from tests.builders import group_ready, member, service_of
from tests.run_logs import new_run, records

SETTINGS = BatchSettings(groups_per_batch=1, max_staleness=9, lookahead=9, token_budget=64)
JUNK = 2 * (batch_service._TAIL_RECORDS + 4 * 10) + 50
"""More than the tail that is looked at first."""


def ready(number: int) -> Output:
    versions = {"oldest_version": number, "newest_version": number}
    trained = {"reward": 1.0, "advantage": 1.0, "prompt_tokens": 2, "response_tokens": 2}
    event = group_ready(f"p.{number}", member(f"p.{number}.0", number, **trained, **versions))
    return Output("groups", event, key=event.group_id)


async def batches(log: Log) -> list[int]:
    numbers = []
    for record in await records(log, "batches"):
        try:
            event = decode(record.value)
        except UndecodableError:
            continue
        if isinstance(event, BatchPlanned):
            numbers.append(event.batch)
    return numbers


async def serve(log: Log, tmp_path: Path, wanted: int) -> None:
    """One process of the service, until as many batches are planned."""
    async with asyncio.timeout(90), service_of(log, tmp_path, "batches") as service:
        running = service.spawn(batch_service.main(service, SETTINGS), "batches")
        while len(await batches(log)) < wanted:
            await asyncio.sleep(0.05)
        service.stopping.set()
        await running


async def test_numbers_go_on_behind_junk(embedded_broker: Broker, prefix: str, tmp_path: Path) -> None:
    log = new_run(embedded_broker, run=prefix)
    async with Writer(log) as writer:
        for number in range(3):
            await writer.write(ready(number))
        await serve(log, tmp_path, 3)
        producer = log.producer()
        await producer.start()
        for _ in range(JUNK):
            await producer.send(log.full("batches"), value=b"\xc1 junk", partition=0)
        await producer.stop()
        await writer.write(ready(3))
    await serve(log, tmp_path, 4)
    assert await batches(log) == [0, 1, 2, 3]
