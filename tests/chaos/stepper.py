"""A learner without a model: it "trains" a digest, so that whether training matches the log can be told to the bit.

Batches are taken in order from the position in the checkpoint; each is fetched by reference, its blobs are verified,
and the digest is folded over it. StepCompleted is a transaction, the checkpoint an atomic rename every third step: the
windows between them are those of the learner.
"""

import asyncio
import hashlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from schemas import BatchPlanned, RolloutCompleted, StepCompleted, decode
from streams.blobs.store import BlobStore
from streams.faults import reach
from streams.log.fetch import RecordFetcher
from streams.log.reader import Reader
from streams.log.transaction import TransactionalWriter
from streams.record import Output, Record
from streams.runtime.service import run_service
from streams.runtime.service_context import ServiceContext
from tests.chaos.load import context_of

CHECKPOINT_EVERY = 3
_POLL_S = 0.1
_FETCH_S = 30.0


class State(msgspec.Struct, frozen=True):
    """Steps done, the offset on `batches` to go on from, and the weights: 32 bytes in hexadecimal."""

    step: int = 0
    offset: int = 0
    weights: str = "0" * 64


def trained(weights: str, plan: BatchPlanned, records: Sequence[Record], blobs: BlobStore) -> str:
    """The weights after a batch: a digest over the old ones and everything that a learner takes from the batch."""
    digest = hashlib.blake2b(bytes.fromhex(weights), digest_size=32)
    for sequence, record in zip(plan.sequences, records, strict=True):
        rollout = decode(record.value)
        assert isinstance(rollout, RolloutCompleted)
        assert rollout.rollout_id == sequence.rollout_id, f"{sequence.rollout_id} is not at {record.ref}"
        assert rollout.routes is not None
        assert rollout.routes.blob is not None
        for part in (rollout.rollout_id.encode(), rollout.response_ids.data, blobs.get(rollout.routes.blob)):
            digest.update(part)
        digest.update(f"{sequence.advantage:.17g}".encode())
    return digest.hexdigest()


def fingerprint(weights: str) -> float:
    """48 bits of the weights, which a float holds exactly: what StepCompleted says of them."""
    return float(int(weights[:12], 16))


def save(path: Path, state: State) -> None:
    """The checkpoint, whole or not at all."""
    partial = path.with_suffix(".tmp")
    with partial.open("wb") as file:
        file.write(msgspec.json.encode(state))
        file.flush()
        os.fsync(file.fileno())
    reach("checkpoint.manifest")
    partial.replace(path)
    reach("checkpoint.renamed")


async def main(service: ServiceContext) -> None:
    """Serve until stopped."""
    path = service.run_context.directory / "checkpoints" / "state.json"
    state = msgspec.json.decode(path.read_bytes(), type=State) if path.exists() else State()
    writer = TransactionalWriter(service.log, f"{service.run_context.run}.learner")
    await writer.open()
    try:
        async with (
            Reader(service.log, {("batches", 0): state.offset}) as reader,
            RecordFetcher(service.log, "rollouts") as fetcher,
        ):
            service.ready()
            while not service.stopping.is_set():
                for record in await reader.poll(_POLL_S):
                    event = decode(record.value)
                    if isinstance(event, BatchPlanned) and event.batch >= state.step and not service.stopping.is_set():
                        state = await _step(service, state, event, record, fetcher, writer)
                        if state.step % CHECKPOINT_EVERY == 0:
                            await asyncio.to_thread(save, path, state)
    finally:
        await writer.close()


async def _step(
    service: ServiceContext,
    state: State,
    plan: BatchPlanned,
    record: Record,
    fetcher: RecordFetcher,
    writer: TransactionalWriter,
) -> State:
    assert plan.batch == state.step, f"batch {plan.batch} follows batch {state.step - 1}"
    records = await fetcher.fetch([sequence.rollout for sequence in plan.sequences], _FETCH_S)
    reach("learner.training")
    weights = await asyncio.to_thread(trained, state.weights, plan, records, service.blobs)
    reach("learner.trained")
    event = StepCompleted(
        step=state.step + 1,
        batch=plan.batch,
        batch_ref=record.ref,
        version=state.step + 1,
        metrics={"weights": fingerprint(weights)},
        sequences=len(records),
        time_s=time.time(),
    )
    offsets = {("batches", 0): (record.offset + 1, "")}
    await writer.write([Output("steps", event, cause=record)], f"{service.run_context.run}.learner", offsets)
    reach("learner.announced")
    return State(state.step + 1, record.offset + 1, weights)


if __name__ == "__main__":
    where, number, of, servers = sys.argv[1:]
    sys.exit(run_service("learner", context_of(Path(where), int(number), int(of), servers), main))
