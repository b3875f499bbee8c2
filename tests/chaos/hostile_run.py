"""Writes hostile records among honest ones, and checks what became of each."""

import asyncio
import gc
import hashlib
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil

from analysis.history.read import audit_of
from analysis.history.run_log import RunLog
from schemas import (
    BlobRef,
    DeadLetter,
    GroupDropped,
    GroupEvaluated,
    GroupReady,
    GroupRequested,
    Ref,
    RolloutDisposed,
    RolloutScored,
    UndecodableError,
    decode,
    encode,
    partition_of,
)
from streams.errors import Poison
from streams.log.clients import Log
from streams.log.dead_letters import event_of
from streams.log.reader import Reader
from streams.record import Record
from tests.chaos.honest import SAMPLES, TOPICS_OF_GROUPS, rollout, score
from tests.chaos.hostile import Hostile, hostile
from tests.chaos.hostile_services import PARTITIONS, serving
from tests.chaos.mutations import CERTAIN

OWNER: Final = {"prompts": "producer", "rollouts": "rewards", "scores": "groups", "groups": "batches"}
MISSING: Final = BlobRef(uri="file:///nonexistent/weights", size=8, digest="0" * 64)
CHUNK: Final = 250


@dataclass
class Expected:
    """What was written, by where it is."""

    written: dict[Ref, tuple[bytes, str]] = field(default_factory=dict)
    refused: set[Ref] = field(default_factory=set)
    groups: set[str] = field(default_factory=set)
    honest: list[Ref] = field(default_factory=list)

    def add(self, record: Hostile, ref: Ref) -> None:
        """A record that stands at `ref` now."""
        self.written[ref] = (_digest(record.value), record.kind)
        if not _is_event(record, ref):
            self.refused.add(ref)
        elif record.kind in CERTAIN:
            raise AssertionError(f"{record.kind} on {record.topic} is an event after all: {record.value[:200]!r}")
        elif record.kind == "bad_blob":
            self.refused.add(ref)
        elif record.topic == "prompts":
            # A request that is believed: nothing comes of it, and its group ends all the same.
            request = decode(record.value)
            assert isinstance(request, GroupRequested)
            self.groups.add(request.group_id)


class Watcher:
    """Reads dead letters, scores and the ends of groups as they come; keeps digests and ids alone."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.dead_letters: dict[Ref, list[tuple[str, bytes]]] = {}
        self.accepted: dict[Ref, tuple[str, Ref]] = {}
        self.ended: set[str] = set()

    async def run(self) -> None:
        """For ever."""
        topics = ("dead-letters", "scores", "groups")
        positions: dict[tuple[str, int], int | None] = {(t, p): None for t in topics for p in self._log.partitions(t)}
        async with Reader(self._log, positions) as reader:
            while True:
                for record in await reader.poll(0.2, max_records=500):
                    self._take(record)

    def _take(self, record: Record) -> None:
        try:
            event = event_of(record)
        except (UndecodableError, Poison):
            return
        match event:
            case DeadLetter():
                self.dead_letters.setdefault(Ref(*event.source), []).append((event.stage, _digest(event.data)))
            case RolloutScored():
                self.accepted[record.ref] = (event.group_id, event.rollout)
            case GroupReady() | GroupDropped() | GroupEvaluated() | RolloutDisposed():
                self.ended.add(event.group_id)
            case _:
                pass

    def missing(self, expected: Expected) -> list[str]:
        """What has not come yet: dead letters, and ends of groups that a score opened."""
        missing = [f"dead letter of {ref}" for ref in expected.refused - self.dead_letters.keys()]
        opened = {group for ref, (group, _) in self.accepted.items() if ref not in self.dead_letters}
        return missing + [f"end of group {group}" for group in (opened | expected.groups) - self.ended]

    async def until_all(self, expected: Expected, deadline_s: float) -> None:
        """Wait for everything. TimeoutError names what is missing."""
        try:
            async with asyncio.timeout(deadline_s):
                while self.missing(expected):
                    await asyncio.sleep(0.1)
        except TimeoutError:
            missing = self.missing(expected)
            raise TimeoutError(f"{len(missing)} things did not come, such as {missing[:5]}") from None


async def write_hostile(log: Log, records: Iterable[Hostile], expected: Expected) -> None:
    """Write `records`, and honest members into the groups of those on `rollouts` and `scores`."""
    producer = log.producer()
    await producer.start()
    try:
        sending: list[tuple[Hostile, asyncio.Future[object]]] = []
        for record in records:
            for each in (record, *_company(record)):
                future = await producer.send(
                    log.full(each.topic), each.value, each.key, each.partition, headers=list(each.headers)
                )
                sending.append((each, future))
            if len(sending) >= CHUNK:
                await _settle(sending, expected)
        await _settle(sending, expected)
    finally:
        await producer.stop()


async def _settle(sending: "list[tuple[Hostile, asyncio.Future[object]]]", expected: Expected) -> None:
    for record, future in sending:
        sent = await asyncio.wait_for(future, 60)
        ref = Ref(record.topic, sent.partition, sent.offset)  # type: ignore[attr-defined]
        if record.kind != "honest":
            expected.add(record, ref)
        elif record.topic == "rollouts":
            expected.honest.append(ref)
    sending.clear()


def _company(record: Hostile) -> list[Hostile]:
    """The honest half of the group of a hostile rollout or score, once a group."""
    if record.topic not in TOPICS_OF_GROUPS or record.index != 0:
        return []
    make = rollout if record.topic == "rollouts" else score
    return [
        Hostile(
            record.topic, record.partition, record.group.encode(), encode(make(record.group, k)), (), "honest",
            record.group, k,
        )
        for k in range(SAMPLES // 2, SAMPLES)
    ]  # fmt: skip


def _is_event(record: Hostile, ref: Ref) -> bool:
    try:
        event_of(Record(*ref, key=None, value=record.value, headers={}, time_s=0.0))
    except (UndecodableError, Poison):
        return False
    return True


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def check(expected: Expected, watcher: Watcher) -> None:
    """Each refused record is in the dead letters with its exact bytes, exactly once, by the owner of its topic."""
    for ref, found in watcher.dead_letters.items():
        if ref not in expected.written:
            continue
        digest, kind = expected.written[ref]
        owner = OWNER.get(ref.topic, "dispatcher")
        if (ref not in expected.refused and ref.topic == "weights") or kind == "bad_blob":
            owner = "producer"
        assert found == [(owner, digest)], f"{kind} at {ref} has the dead letters {[stage for stage, _ in found]}"
    assert expected.refused <= watcher.dead_letters.keys()


async def bombard(log: Log, directory: Path, seed: int, count: int, deadline_s: float) -> Counter[str]:
    """The whole property, and a restart of every service in the end; what was written and found, for the report."""
    expected, watcher, figures = Expected(), Watcher(log), Counter[str]()
    records = hostile(seed, count, PARTITIONS, MISSING)
    watching = asyncio.create_task(watcher.run())
    began = time.monotonic()
    try:
        async with serving(log, directory):
            await write_hostile(log, (next(records) for _ in range(count // 2)), expected)
            await watcher.until_all(expected, deadline_s)
            half = resident_mib()
            await write_hostile(log, records, expected)
            await watcher.until_all(expected, deadline_s)
            figures["mib_grown"] = round(resident_mib() - half)
        check(expected, watcher)
        figures["seconds"] = round(time.monotonic() - began)
        # A second process reads everything again that is not committed, and writes nothing twice.
        async with serving(log, directory):
            await write_hostile(log, hostile(seed + 1, 40, PARTITIONS, MISSING), expected)
            await probe(log, expected)
            await watcher.until_all(expected, deadline_s)
        once_more = Expected({r: w for r, w in expected.written.items() if r.topic != "weights"})
        once_more.refused = {ref for ref in expected.refused if ref.topic != "weights"}
        check(once_more, watcher)
    finally:
        watching.cancel()
    figures["written"], figures["refused"] = len(expected.written), len(expected.refused)
    figures["dead_letters"], figures["groups_ended"] = len(watcher.dead_letters), len(watcher.ended)
    audit = await asyncio.to_thread(audit_of, RunLog(log.settings.bootstrap, log.settings.run))
    lost = {finding.ref for finding in audit.findings} & set(expected.honest)
    assert not lost, f"honest rollouts {sorted(lost)[:5]} are not accounted for"
    assert audit.trained_twice == 0
    figures["audit_produced"], figures["audit_dead_letters"] = audit.produced, audit.dispositions["dead_letter"]
    return figures


async def probe(log: Log, expected: Expected) -> None:
    """An honest group of rollouts still goes all the way."""
    group = f"probe{uuid.uuid4().hex[:6]}.0"
    partition = partition_of(group, PARTITIONS)
    records = [
        Hostile("rollouts", partition, group.encode(), encode(rollout(group, k)), (), "honest", group, k)
        for k in range(SAMPLES)
    ]
    expected.groups.add(group)
    producer = log.producer()
    await producer.start()
    try:
        for record in records:
            sent = await producer.send_and_wait(log.full("rollouts"), record.value, record.key, partition)
            expected.honest.append(Ref("rollouts", sent.partition, sent.offset))
    finally:
        await producer.stop()


def resident_mib() -> float:
    gc.collect()
    resident: int = psutil.Process().memory_info().rss
    return resident / 2**20


def on_topic(expected: Expected, topic: str) -> list[Ref]:
    return [ref for ref in expected.written if ref.topic == topic]


def honest_records(expected: Expected, records: list[Hostile]) -> Iterator[tuple[Ref, str]]:
    names = [f"{each.group}.{each.index}" for record in records for each in _company(record)]
    return zip(expected.honest, names, strict=True)
