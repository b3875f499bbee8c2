"""Loads batches for one rank: plans in order, the rank's own rollouts by reference, one batch prefetched."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from learner.batch.decode import to_rollout
from learner.errors import LostBatchError, RejectedSequenceError
from learner.model.packed_row import Rollout, assign_micro_batches
from learner.model.policy import ModelShape
from schemas import BatchPlanned, PlannedSequence, Ref, Rejected, UndecodableError, decode
from streams.errors import DeadlineError, MissingRecordError
from streams.log.clients import Writer
from streams.log.dead_letters import dead_letter, place
from streams.log.fetch import RecordFetcher
from streams.log.reader import Reader
from streams.log.stall import StallDetector
from streams.record import Record
from streams.runtime.progress import Progress
from streams.runtime.service_context import ServiceContext

logger = logging.getLogger(__name__)

_POLL_S = 0.2
TOPIC = "batches"


@dataclass(frozen=True)
class LoadedBatch:
    """A plan with this rank's micro-batches; `rejected`: those of the rank's sequences that cannot be trained on.

    `digests`: of the others, by their index in the plan's sequences.
    """

    plan: BatchPlanned
    record: Record
    micro_batches: tuple[tuple[Rollout, ...], ...]
    rejected: tuple[Rejected, ...]
    digests: Mapping[int, bytes]


@dataclass(frozen=True)
class LoaderConfig:
    """Which rollouts a rank fetches, within how many seconds, and the model that they must fit.

    `rejected`: by rollout id, why an earlier process left a rollout out of a batch that is now trained on again.
    """

    rank: int
    world: int
    shape: ModelShape
    timeout_s: float
    rejected: Mapping[str, str] = field(default_factory=dict)


class BatchLoader:
    """Reads `batches` from `offset`, which is at or before batch number `next_batch`.

    `fill` runs concurrently with training and prefetches one batch: while one trains, the next is fetched and decoded.
    """

    def __init__(self, service: ServiceContext, config: LoaderConfig, offset: int, next_batch: int) -> None:
        self._service = service
        self._config = config
        self._offset = offset
        self._next = next_batch
        self._skipped: int | None = None
        self._cut = False  # Retention has deleted records after the checkpoint's offset, and no batch was read since.
        self._awaited = next_batch
        self._ready: asyncio.Queue[LoadedBatch] = asyncio.Queue(maxsize=1)
        self._waiting_since: float | None = None
        service.add_status(self._waits)

    async def next(self) -> LoadedBatch | None:
        """The next batch, or None as soon as the service is asked to stop."""
        self._waiting_since = time.monotonic()
        getting = asyncio.ensure_future(self._ready.get())
        stopping = asyncio.ensure_future(self._service.stopping.wait())
        try:
            await asyncio.wait([getting, stopping], return_when=asyncio.FIRST_COMPLETED)
            if self._service.stopping.is_set():
                return None
            batch = getting.result()
            self._awaited = batch.plan.batch + 1
            return batch
        finally:
            self._waiting_since = None
            getting.cancel()
            stopping.cancel()

    def _waits(self) -> list[str]:
        """What this rank waits for, for `status`: without a deadline, since a run may have nothing to train on."""
        if self._waiting_since is None:
            return []
        return [f"waits for batch {self._awaited} since {time.monotonic() - self._waiting_since:.0f} s"]

    async def fill(self) -> None:
        """Load batches until cancelled. LostBatchError: a batch is lost, or this is not the log that was trained on."""
        log = self._service.log
        async with (
            Reader(log, {(TOPIC, 0): self._offset}) as reader,
            RecordFetcher(log, "rollouts") as fetcher,
            Writer(log) as writer,
        ):
            end, start = (await reader.ends())[TOPIC, 0], (await reader.starts())[TOPIC, 0]
            if end < self._offset:
                raise LostBatchError(
                    f"the checkpoint stands at offset {self._offset} of {TOPIC} and the log ends at {end}: "
                    "it is not the log that was trained on"
                )
            self._cut = start > self._offset
            with self._service.loop(f"reads {TOPIC}") as loop:
                async for plan, record in self._plans(reader, writer, loop):
                    with loop.resting():  # its own deadlines; and a step may take as long as it takes
                        await self._ready.put(await self._load(plan, record, fetcher, writer))

    async def _plans(
        self, reader: Reader, writer: Writer, loop: Progress
    ) -> AsyncIterator[tuple[BatchPlanned, Record]]:
        """Each batch number once, in order; a number seen before was re-published by a restarted batcher."""
        stall = StallDetector()
        while True:
            loop.turn()
            records = await reader.poll(_POLL_S)
            if not records:
                await stall.check(reader)
            for record in records:
                try:
                    event = decode(record.value)
                except UndecodableError as error:
                    logger.warning("skipped %s: %s", place(record.ref), error)
                    continue
                if not isinstance(event, BatchPlanned) or event.batch < self._next:
                    continue
                if event.batch > self._next:
                    await self._skip(event.batch, record, writer)
                    continue
                self._next += 1
                self._skipped, self._cut = None, False
                yield event, record

    async def _skip(self, number: int, record: Record, writer: Writer) -> None:
        """Skip a batch number above the expected one, with a dead letter.

        The batcher leaves no number out. So, where no record is missing from the log, another program wrote this one,
        and the expected batch is still to come. LostBatchError: records are missing, or two such numbers follow each
        other, which only a batcher writes that has continued without the expected batch.
        """
        if self._cut or number - 1 == self._skipped:
            why = (
                "retention has deleted what the checkpoint resumes from" if self._cut else f"as does batch {number - 1}"
            )
            raise LostBatchError(
                f"batch {number} at {TOPIC}/0@{record.offset} follows batch {self._next - 1} ({why}): the log has lost "
                f"batch {self._next}, on which this run's next weights depend; start a new run from its last weights"
            )
        self._skipped = number
        reason = f"batch {number} was not written by the batcher, whose next one is {self._next}"
        logger.warning("skipped out-of-order %s: %s", place(record.ref), reason)
        if self._config.rank == 0:
            await writer.write(dead_letter(record, "learner", reason, time.time()))

    async def _load(self, plan: BatchPlanned, record: Record, fetcher: RecordFetcher, writer: Writer) -> LoadedBatch:
        started = time.monotonic()
        own = assign_micro_batches(plan.ranks, self._config.world)[self._config.rank]
        wanted = [plan.sequences[index] for micro in own for index in micro]
        rejected = {
            sequence.rollout_id: self._config.rejected[sequence.rollout_id]
            for sequence in wanted
            if sequence.rollout_id in self._config.rejected
        }
        async with self._service.wait(f"for the rollouts of batch {plan.batch}", 3 * self._config.timeout_s):
            needed = [sequence for sequence in wanted if sequence.rollout_id not in rejected]
            found, missing = await self._fetch(fetcher, needed)
        rejected |= missing
        rollouts = await asyncio.to_thread(self._decode, plan, wanted, found, rejected)
        for sequence in wanted:
            if sequence.rollout_id in rejected and sequence.rollout in found:
                reason = rejected[sequence.rollout_id]
                await writer.write(dead_letter(found[sequence.rollout], "learner", reason, time.time()))
        self._service.gauge("batch_load_s", time.monotonic() - started)
        return LoadedBatch(
            plan,
            record,
            tuple(tuple(rollouts[index] for index in micro if index in rollouts) for micro in own),
            tuple(
                Rejected(rollout_id=sequence.rollout_id, rollout=sequence.rollout, reason=rejected[sequence.rollout_id])
                for sequence in wanted
                if sequence.rollout_id in rejected
            ),
            {index: rollout.digest for index, rollout in rollouts.items()},
        )

    async def _fetch(
        self, fetcher: RecordFetcher, wanted: Sequence[PlannedSequence]
    ) -> tuple[dict[Ref, Record], dict[str, str]]:
        """The records by reference, and by rollout id why others are missing. DeadlineError: the broker is slow."""
        present = {Ref(*sequence.rollout): sequence.rollout_id for sequence in wanted}
        missing: dict[str, str] = {}
        while present:
            try:
                records = await fetcher.fetch(list(present), self._config.timeout_s)
                return {record.ref: record for record in records}, missing
            except MissingRecordError as error:
                missing[present.pop(error.ref)] = str(error)
            except DeadlineError:
                # A reference past a partition's end times out, as a slow broker does; only the ends tell them apart.
                beyond = await self._beyond_end(present)
                if not beyond:
                    raise
                for ref in beyond:
                    missing[present.pop(ref)] = str(MissingRecordError(ref))
        return {}, missing

    async def _beyond_end(self, refs: Iterable[Ref]) -> list[Ref]:
        log = self._service.log
        async with Reader(log, {("rollouts", p): None for p in log.partitions("rollouts")}) as reader:
            ends = await reader.ends()
        return [ref for ref in refs if ref.offset >= ends[ref.topic, ref.partition]]

    def _decode(
        self,
        plan: BatchPlanned,
        wanted: Sequence[PlannedSequence],
        found: dict[Ref, Record],
        rejected: dict[str, str],
    ) -> dict[int, Rollout]:
        """Rollouts by their index in the plan; adds to `rejected` why others cannot be trained on."""
        chosen = {sequence.rollout_id for sequence in wanted} - rejected.keys()
        rollouts: dict[int, Rollout] = {}
        for index, sequence in enumerate(plan.sequences):
            if sequence.rollout_id in chosen:
                record = found[sequence.rollout]
                try:
                    rollout = to_rollout(sequence, record, self._config.shape, self._service.blobs, plan.batch)
                    _check_budget(rollout, plan)
                    rollouts[index] = rollout
                except RejectedSequenceError as error:
                    rejected[sequence.rollout_id] = str(error)
        return rollouts


def _check_budget(rollout: Rollout, plan: BatchPlanned) -> None:
    """RejectedSequenceError: it alone exceeds a micro-batch's token budget, which bounds the memory of a step."""
    tokens = len(rollout.tokens)
    if tokens > plan.token_budget:
        raise RejectedSequenceError(
            f"{tokens} tokens are more than the {plan.token_budget} of a micro-batch (batches.token_budget)"
        )
