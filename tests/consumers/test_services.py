"""The three services together on real brokers, stopped and started in between: every rollout ends exactly once."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import pytest
from kafka import KafkaAdminClient

from consumers.batches import service as batches
from consumers.batches.settings import BatchSettings
from consumers.groups import service as groups
from consumers.groups.settings import GroupSettings
from consumers.rewards import service as rewards
from consumers.rewards.settings import RewardSettings
from schemas import (
    TOPICS,
    BatchPlanned,
    DeadLetter,
    Event,
    GroupDropped,
    GroupEvaluated,
    GroupReady,
    GroupRequested,
    Ref,
    RolloutCompleted,
    RolloutDisposed,
    RolloutScored,
    decode,
)
from schemas.events import EventBase
from streams.blobs.store import BlobStore
from streams.broker import Broker
from streams.log.clients import Log, Writer
from streams.log.reader import Reader
from streams.record import Output, Record
from streams.runtime.service_context import ServiceContext
from tests.builders import context_of, group_requested, step_completed
from tests.run_logs import new_run

E = TypeVar("E", bound=EventBase)

MakeRollout = Callable[..., RolloutCompleted]

PARTITIONS = 2
BATCHES = BatchSettings(groups_per_batch=2, ranks=2, token_budget=64, lookahead=1, max_staleness=9)


@pytest.fixture
def log(broker: Broker) -> Log:
    return new_run(broker, PARTITIONS)


@asynccontextmanager
async def serving(log: Log, model: Path, directory: Path) -> AsyncIterator[None]:
    """All three services, stopped as by SIGTERM at the end."""
    context = context_of(log, directory, drain_s=5.0)
    async with asyncio.TaskGroup() as tasks:
        scopes = [
            ServiceContext(name, context, log, BlobStore(context.blob_uri), tasks)
            for name in ("rewards", "groups", "b")
        ]
        tasks.create_task(rewards.main(scopes[0], RewardSettings(model=str(model))))
        tasks.create_task(groups.main(scopes[1], GroupSettings(min_samples=2, settle_s=0.3, unheard_s=0.3)))
        tasks.create_task(batches.main(scopes[2], BATCHES))
        yield
        for service in scopes:
            service.stopping.set()


class Everything:
    """What is on the run's topics, as far as it was read."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.records: dict[str, list[tuple[Event | None, Record]]] = {name: [] for name in TOPICS}

    async def read_until(self, what: str, condition: Callable[[], bool], deadline_s: float = 90.0) -> None:
        """Read until `condition` holds; TimeoutError names `what`."""
        self.records = {name: [] for name in TOPICS}
        positions: dict[tuple[str, int], int | None] = {
            (name, p): None for name in TOPICS for p in self._log.partitions(name)
        }
        try:
            async with asyncio.timeout(deadline_s), Reader(self._log, positions) as reader:
                while not condition():
                    await self._take(reader)
                # Topics are read side by side: what led to this may come after it, and nothing of that is left out.
                ends = await reader.ends()
                while any(position < ends[key] for key, position in (await reader.positions()).items()):
                    await self._take(reader)
        except TimeoutError:
            counts = Counter(type(event).__name__ for name in TOPICS for event, _ in self.records[name])
            raise TimeoutError(f"{what} did not come: {dict(counts)}") from None

    async def _take(self, reader: Reader) -> None:
        for record in await reader.poll(0.1):
            event = None if record.value == b"junk" else decode(record.value)
            self.records[record.topic].append((event, record))

    def of(self, kind: type[E]) -> list[E]:
        return [event for name in TOPICS for event, _ in self.records[name] if isinstance(event, kind)]

    def rollouts(self) -> set[Ref]:
        return {record.ref for event, record in self.records["rollouts"] if event is not None}

    def ends(self) -> Iterator[tuple[Ref, str]]:
        """(rollout, end): `planned` for what a batch lists."""
        for name in ("groups", "batches"):
            for event, _ in self.records[name]:
                match event:
                    case GroupReady() | GroupDropped() | GroupEvaluated():
                        yield from ((m.rollout, m.disposition) for m in event.members if m.disposition)
                    case RolloutDisposed():
                        yield event.rollout, event.disposition
                    case BatchPlanned():
                        yield from ((sequence.rollout, "planned") for sequence in event.sequences)
                    case _:
                        pass


async def test_every_rollout_ends_once(log: Log, model: Path, tmp_path: Path, make_rollout: MakeRollout) -> None:
    seen = Everything(log)
    async with Writer(log) as writer:

        async def write(group_id: str, texts: str, attempt: int = 0, **fields: object) -> None:
            for index, answer in enumerate(texts):
                rollout = make_rollout(f"3+1={answer}", group_id=group_id, index=index, attempt=attempt, **fields)
                await writer.write(Output("rollouts", rollout, key=group_id))

        async with serving(log, model, tmp_path):
            for name in range(4):
                await write(f"p.{name}", "4544")
            await write("p.4", "4444")
            await write("p.5", "4545", verifier="oracle")
            await write("e.0", "4455", purpose="evaluate", evaluation=1)
            await write_junk(log)
            await writer.write(Output("prompts", requested("p.7", 1.0), key="p.7"))
            await seen.read_until(
                "the first batch, every group and the dead letter",
                lambda: (
                    len(seen.of(BatchPlanned)) == 1
                    and len(seen.of(GroupReady) + seen.of(GroupDropped) + seen.of(GroupEvaluated)) == 8
                    and len(seen.of(DeadLetter)) == 1
                ),
            )
        await write("p.0", "4", attempt=1)
        await write("p.6", "4", deadline_s=1.0)
        step = step_completed(0)
        await writer.write(Output("steps", step))
        async with serving(log, model, tmp_path):
            await seen.read_until(
                "the second batch, the straggler's end and the expired group",
                lambda: len(seen.of(BatchPlanned)) == 2 and sum(1 for _ in seen.ends()) == 30,
            )
    assert [event.reason for event in seen.of(GroupDropped) if event.group_id == "p.7"] == ["expired"]
    ends = list(seen.ends())
    assert Counter(ref for ref, _ in ends) == dict.fromkeys(seen.rollouts(), 1)
    assert Counter(end for _, end in ends) == {
        "planned": 16,
        "zero_variance": 4,
        "invalid": 4,
        "evaluated": 4,
        "duplicate": 1,
        "expired": 1,
    }
    planned = [(event.batch, len(event.groups), len(event.ranks)) for event in seen.of(BatchPlanned)]
    assert planned == [(0, 2, 2), (1, 2, 2)]
    for topic in ("scores", "groups"):
        for event, record in seen.records[topic]:
            if isinstance(event, RolloutScored):
                assert record.partition == event.rollout.partition


@pytest.mark.kafka
@pytest.mark.parametrize("broker", ["kafka"], indirect=True)
async def test_nothing_is_planned_twice_when_the_broker_forgets_what_was_committed(
    log: Log, model: Path, tmp_path: Path, make_rollout: MakeRollout
) -> None:
    seen = Everything(log)
    async with Writer(log) as writer:
        async with serving(log, model, tmp_path):
            for name in range(4):
                await writer.write(Output("prompts", requested(f"p.{name}", 4e9), key=f"p.{name}"))
                for index, answer in enumerate("4544"):
                    rollout = make_rollout(f"3+1={answer}", group_id=f"p.{name}", index=index)
                    await writer.write(Output("rollouts", rollout, key=f"p.{name}"))
            await seen.read_until(
                "the first batch and every group",
                lambda: len(seen.of(BatchPlanned)) == 1 and len(seen.of(GroupReady)) == 4,
            )
        await forget([f"{log.settings.run}.{stage}" for stage in ("rewards", "groups", "batches")], log)
        step = step_completed(0)
        await writer.write(Output("steps", step))
        async with serving(log, model, tmp_path):
            await seen.read_until(
                "the second batch and every score again",
                lambda: len(seen.of(BatchPlanned)) == 2 and len(seen.of(RolloutScored)) == 32,
            )
    assert Counter(ref for ref, _ in seen.ends()) == dict.fromkeys(seen.rollouts(), 1)
    assert {end for _, end in seen.ends()} == {"planned"}


async def forget(groups: list[str], log: Log) -> None:
    """Delete consumer groups: the broker refuses while it holds one for not quite empty, and raises nothing."""
    admin = KafkaAdminClient(bootstrap_servers=log.settings.bootstrap)
    try:
        async with asyncio.timeout(60):
            while groups:
                answers = await asyncio.to_thread(admin.delete_groups, groups)
                groups = [group for group in groups if answers[group] not in ("OK", "GroupIdNotFoundError")]
                await asyncio.sleep(0.05)
    finally:
        admin.close()


def requested(group_id: str, deadline_s: float) -> GroupRequested:
    """A request for four samples."""
    return group_requested(group_id, time_s=time.time(), deadline_s=deadline_s)


async def write_junk(log: Log) -> None:
    async with asyncio.timeout(60):
        producer = log.producer()
        await producer.start()
        await producer.send_and_wait(log.full("rollouts"), b"junk", partition=0)
        await producer.stop()
