"""How long `eachprompt audit` takes and what memory it needs, on a log of N rollouts on Apache Kafka.

    python benchmarks/audit.py [--rollouts 1000000] [--bytes 1200] [--dir DIR] [--keep]

Writes the topics of a run in which every eighth group has no variance and the others were trained (groups of 8, batches
of 64 groups), then runs `analysis.history.read.audit_of` in a process of its own on that broker.
"""

import argparse
import asyncio
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from analysis.history.read import audit_of
from analysis.history.run_log import RunLog
from schemas import (
    TOPICS,
    BatchPlanned,
    EngineInfo,
    Event,
    GroupDropped,
    GroupReady,
    Member,
    NDArray,
    PlannedSequence,
    Ref,
    RolloutCompleted,
    RolloutScored,
    RolloutTimings,
    Sampling,
    StepCompleted,
    WeightSpan,
    encode,
)
from streams.broker import BrokerSettings, open_broker
from streams.log.admin import Admin, TopicSpec
from streams.log.clients import Log, LogSettings

RUN: Final = "big"
PARTITIONS: Final = 4
SAMPLES: Final = 8
GROUPS: Final = 64

Write = tuple[str, int, Event]


def history(rollouts: int, size_bytes: int) -> Iterator[Write]:
    """(topic, partition, event) of the whole run, in the order of its making."""
    ends = [0] * PARTITIONS
    template = _rollout(size_bytes)
    batch: list[PlannedSequence] = []
    names: list[str] = []
    batches = 0
    for number in range(rollouts // SAMPLES):
        group, partition = f"{number:016x}.0", number % PARTITIONS
        members = []
        for index in range(SAMPLES):
            ref = Ref("rollouts", partition, ends[partition])
            ends[partition] += 1
            name = f"{group}.{index}"
            yield (
                "rollouts",
                partition,
                msgspec.structs.replace(template, rollout_id=name, group_id=group, index=index),
            )
            yield "scores", partition, _score(name, group, index, ref)
            members.append(Member(rollout_id=name, rollout=ref, reward=float(index % 2), response_tokens=100))
        if number % 8 == 0:
            yield "groups", partition, _dropped(group, tuple(members))
            continue
        yield "groups", partition, _ready(group, tuple(members))
        names.append(group)
        batch += [_sequence(member) for member in members]
        if len(names) == GROUPS:
            yield "batches", 0, _batch(batches, tuple(names), tuple(batch))
            yield "steps", 0, _step(batches)
            batches += 1
            batch, names = [], []


def _rollout(size_bytes: int) -> RolloutCompleted:
    tokens = max(1, (size_bytes - 700) // 8)
    return RolloutCompleted(
        rollout_id="", group_id="", prompt_id="p", index=0, attempt=0, producer_id="producer-0",
        request=Ref("prompts", 0, 0), task="sums", samples=SAMPLES, verifier="exact_match", reference="3",
        deadline_s=4e9, prompt_ids=NDArray.of(np.arange(10, dtype="u4")),
        response_ids=NDArray.of(np.arange(tokens, dtype="u4")),
        logprobs=NDArray.of(np.full(tokens, -0.5, dtype="f4")), spans=(WeightSpan(0, 0),),
        sampling=Sampling(max_tokens=tokens), finish_reason="stop",
        engine=EngineInfo(name="vllm", version="0", model="tiny"),
        timings=RolloutTimings(received_s=0, started_s=0, first_token_s=0, finished_s=0), requested_s=0.0, time_s=0.0,
    )  # fmt: skip


def _score(name: str, group: str, index: int, ref: Ref) -> RolloutScored:
    return RolloutScored(
        rollout_id=name, group_id=group, prompt_id="p", index=index, attempt=0, rollout=ref, task="sums",
        samples=SAMPLES, deadline_s=4e9, valid=True, time_s=0.0, reward=float(index % 2), passed=float(index % 2),
    )  # fmt: skip


def _ready(group: str, members: tuple[Member, ...]) -> GroupReady:
    return GroupReady(
        group_id=group, prompt_id="p", task="sums", members=members, reward_mean=0.5, reward_std=0.5, time_s=0.0,
        deadline_s=4e9,
    )  # fmt: skip


def _dropped(group: str, members: tuple[Member, ...]) -> GroupDropped:
    ended = tuple(msgspec.structs.replace(member, disposition="zero_variance") for member in members)
    return GroupDropped(
        group_id=group, prompt_id="p", task="sums", reason="zero_variance", members=ended, time_s=0.0
    )  # fmt: skip


def _sequence(member: Member) -> PlannedSequence:
    return PlannedSequence(
        rollout_id=member.rollout_id, rollout=member.rollout, advantage=0.0, reward=member.reward, prompt_tokens=10,
        response_tokens=100, oldest_version=0,
    )  # fmt: skip


def _batch(number: int, groups: tuple[str, ...], sequences: tuple[PlannedSequence, ...]) -> BatchPlanned:
    ranks = ((tuple(range(len(sequences))),),)
    return BatchPlanned(
        batch=number, groups=groups, sequences=sequences, ranks=ranks, token_budget=1 << 20, time_s=0.0
    )  # fmt: skip


def _step(number: int) -> StepCompleted:
    # No transactions here, so a batch's number is its offset.
    return StepCompleted(
        step=number, batch=number, batch_ref=Ref("batches", 0, number), version=number + 1, metrics={}, time_s=0.0
    )  # fmt: skip


async def fill(bootstrap: str, rollouts: int, size_bytes: int) -> None:
    """Write the run as fast as one producer can."""
    log = Log(LogSettings(bootstrap, RUN, PARTITIONS), "fill")
    producer = log.producer()
    await producer.start()
    last = None
    for count, (topic, partition, event) in enumerate(history(rollouts, size_bytes)):
        last = await producer.send(log.full(topic), value=encode(event), partition=partition)
        if count % 5000 == 0:
            await last
    if last is not None:
        await last
    await producer.stop()


def measure(bootstrap: str) -> int:
    """Audit and print one JSON line: seconds, CPU seconds, peak resident MiB, and the verdict."""
    started, cpu = time.monotonic(), time.process_time()
    base_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    audit = audit_of(RunLog(bootstrap, RUN))
    figures = {
        "wall_s": round(time.monotonic() - started, 1),
        "cpu_s": round(time.process_time() - cpu, 1),
        "rollouts_per_s": round(audit.produced / (time.monotonic() - started)),
        "rss_before_mib": base_kib // 1024,
        "rss_peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "produced": audit.produced,
        "dispositions": {name: n for name, n in audit.dispositions.items() if n},
        "in_flight": audit.in_flight,
        "clean": audit.clean,
    }
    print(msgspec.json.encode(figures).decode())
    return 0 if audit.clean else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=1_000_000)
    parser.add_argument("--bytes", type=int, default=1200, help="bytes of one rollout record")
    parser.add_argument("--dir", type=Path, help="run directory (default: a temporary one)")
    parser.add_argument("--keep", action="store_true", help="leave the directory")
    parser.add_argument("--measure", metavar="BOOTSTRAP", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        return measure(arguments.measure)
    directory = arguments.dir or Path(tempfile.mkdtemp(prefix="eachprompt-audit-"))
    try:
        with open_broker(BrokerSettings(kind="kafka"), directory) as broker:
            with Admin(broker.bootstrap) as admin:
                created = admin.create_topics(
                    [TopicSpec(t.on(RUN), PARTITIONS if t.sharded else 1, retention_ms=-1) for t in TOPICS.values()]
                )
            started = time.monotonic()
            if created:
                asyncio.run(fill(broker.bootstrap, arguments.rollouts, arguments.bytes))
                print(f"wrote {arguments.rollouts} rollouts in {time.monotonic() - started:.0f} s", file=sys.stderr)
            return os.spawnv(
                os.P_WAIT, sys.executable, [sys.executable, __file__, "--measure", broker.bootstrap]
            )  # its memory is its own
    finally:
        if not arguments.keep:
            shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
