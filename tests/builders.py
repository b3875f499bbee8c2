"""What tests make again and again: events with defaults, contexts of services, and waiting under a deadline.

Each builder's defaults are those of an ordinary event of group `p.0`; a test gives the fields that it is about.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from schemas import (
    BatchPlanned,
    Disposition,
    EngineInfo,
    GroupDropped,
    GroupReady,
    GroupRequested,
    Member,
    NDArray,
    PlannedSequence,
    Ref,
    RolloutCompleted,
    RolloutDisposed,
    RolloutScored,
    RolloutTimings,
    Sampling,
    StepCompleted,
    WeightFile,
    WeightSpan,
    WeightsPublished,
)
from streams.blobs.store import BlobStore
from streams.context import RunContext
from streams.log.clients import Log
from streams.record import Record
from streams.runtime.service_context import ServiceContext

_FIRST = Ref("rollouts", 0, 0)


def group_requested(group_id: str = "p.0", **fields: Any) -> GroupRequested:
    """A request for four samples, of which nobody is in a hurry."""
    defaults: dict[str, Any] = {
        "prompt_id": prompt_of(group_id), "visit": 0, "sequence": 0, "task": "sums", "samples": 4,
        "sampling": Sampling(max_tokens=8), "verifier": "exact_match", "reference": "4", "prompt": "3+1=",
        "time_s": 0.0, "deadline_s": 4e9,
    }  # fmt: skip
    return GroupRequested(group_id=group_id, **(defaults | fields))


def rollout_completed(
    group_id: str = "p.0",
    index: int = 0,
    *,
    prompt: ArrayLike = (1,),
    response: ArrayLike = (2, 3),
    **fields: Any,
) -> RolloutCompleted:
    """A rollout of those token ids, every one with log-probability -0.5 under weights 0; without routes."""
    defaults: dict[str, Any] = {
        "rollout_id": f"{group_id}.{index}", "prompt_id": prompt_of(group_id), "attempt": 0,
        "producer_id": "producer-0", "request": Ref("prompts", 0, 0), "task": "sums", "samples": 4,
        "verifier": "exact_match", "reference": "4", "deadline_s": 4e9,
        "prompt_ids": NDArray.of(np.array(prompt, dtype="u4")),
        "response_ids": NDArray.of(np.array(response, dtype="u4")),
        "logprobs": NDArray.of(np.full(np.size(response), -0.5, dtype="f4")), "spans": (WeightSpan(0, 0),),
        "sampling": Sampling(max_tokens=8), "finish_reason": "stop",
        "engine": EngineInfo(name="e", version="0", model="m"),
        "timings": RolloutTimings(received_s=1.0, started_s=1.0, first_token_s=1.0, finished_s=1.0),
        "requested_s": 1.0, "time_s": 1.0,
    }  # fmt: skip
    return RolloutCompleted(group_id=group_id, index=index, **(defaults | fields))


def rollout_scored(group_id: str = "p.0", index: int = 0, **fields: Any) -> RolloutScored:
    """A valid score of the first attempt, whose rollout stands at offset `index`."""
    defaults: dict[str, Any] = {
        "rollout_id": f"{group_id}.{index}", "prompt_id": prompt_of(group_id), "attempt": 0,
        "rollout": Ref("rollouts", 0, index), "task": "sums", "samples": 2, "deadline_s": 4e9, "valid": True,
        "time_s": 0.0,
    }  # fmt: skip
    return RolloutScored(group_id=group_id, index=index, **(defaults | fields))


def member(rollout_id: str = "p.0.0", offset: int = 0, **fields: Any) -> Member:
    """A member whose rollout stands at that offset."""
    return Member(rollout_id=rollout_id, rollout=Ref("rollouts", 0, offset), **fields)


def group_ready(group_id: str = "p.0", *members: Member, **fields: Any) -> GroupReady:
    """A group to train on."""
    defaults: dict[str, Any] = {
        "prompt_id": prompt_of(group_id), "task": "sums", "reward_mean": 0.5, "reward_std": 0.5, "time_s": 0.0,
        "deadline_s": 0.0,
    }  # fmt: skip
    return GroupReady(group_id=group_id, members=members, **(defaults | fields))


def group_dropped(group_id: str = "p.0", *members: Member, **fields: Any) -> GroupDropped:
    """A group without variance."""
    defaults: dict[str, Any] = {
        "prompt_id": prompt_of(group_id), "task": "sums", "reason": "zero_variance", "time_s": 0.0,
    }  # fmt: skip
    return GroupDropped(group_id=group_id, members=members, **(defaults | fields))


def rollout_disposed(
    rollout_id: str = "p.0.0", rollout: Ref = _FIRST, disposition: Disposition = "expired", time_s: float = 0.0
) -> RolloutDisposed:
    """The end of one rollout, whose group its id names."""
    return RolloutDisposed(
        rollout_id=rollout_id, group_id=rollout_id.rpartition(".")[0], rollout=rollout, disposition=disposition,
        time_s=time_s,
    )  # fmt: skip


def planned_sequence(rollout_id: str = "p.0.0", rollout: Ref = _FIRST, **fields: Any) -> PlannedSequence:
    """A sequence of four prompt and two response tokens under weights 0, to be made likelier."""
    defaults: dict[str, Any] = {
        "advantage": 1.0, "reward": 1.0, "prompt_tokens": 4, "response_tokens": 2, "oldest_version": 0,
    }  # fmt: skip
    return PlannedSequence(rollout_id=rollout_id, rollout=rollout, **(defaults | fields))


def batch_planned(batch: int, **fields: Any) -> BatchPlanned:
    """A batch of no sequences."""
    defaults: dict[str, Any] = {"groups": (), "sequences": (), "ranks": (), "token_budget": 1, "time_s": 0.0}
    return BatchPlanned(batch=batch, **(defaults | fields))


def step_completed(step: int, **fields: Any) -> StepCompleted:
    """A step on the batch of its number, which left the next version behind."""
    defaults: dict[str, Any] = {
        "batch": step, "batch_ref": Ref("batches", 0, step), "version": step + 1, "metrics": {}, "time_s": 0.0,
    }  # fmt: skip
    return StepCompleted(step=step, **(defaults | fields))


def weights_published(version: int, **fields: Any) -> WeightsPublished:
    """Full weights of no files, of the step of their number."""
    defaults: dict[str, Any] = {
        "kind": "full", "precision": "bf16", "files": (), "tensors": 0, "parent_step": version, "time_s": 0.0,
    }  # fmt: skip
    return WeightsPublished(version=version, **(defaults | fields))


def publication_of(made: Any, blobs: BlobStore) -> WeightsPublished:
    """The event of a version that `learner.weights.wire` has written; its files are uploaded."""
    files = tuple(WeightFile(name=p.name, blob=blobs.put_file(f"v{made.version}/{p.name}", p)) for p in made.paths)
    said = {name: getattr(made, name) for name in ("kind", "tensors", "digest", "base_version", "base_digest")}
    return weights_published(made.version, files=files, **said)


def record_at(topic: str, offset: int = 0, value: bytes = b"", time_s: float = 0.0) -> Record:
    """What a stage is given beside a decoded event: a record of partition 0, without key or headers."""
    return Record(topic, 0, offset, None, value, {}, time_s)


def prompt_of(group_id: str) -> str:
    """The prompt of a group: what stands before its visit."""
    return group_id.partition(".")[0]


def context_of(log: Log, directory: Path, **fields: Any) -> RunContext:
    """The context of the run of `log`, whose blobs lie in `directory`."""
    settings = log.settings
    blobs = (directory / "blobs").as_uri()
    return RunContext(settings.run, directory, settings.bootstrap, settings.partitions, blobs, **fields)


@asynccontextmanager
async def service_of(log: Log, directory: Path, name: str = "test", **fields: Any) -> AsyncIterator[ServiceContext]:
    """A service of that run; asked to stop, and what it spawned cancelled, at the end of the block."""
    context = context_of(log, directory, **fields)
    async with asyncio.TaskGroup() as tasks:
        service = ServiceContext(name, context, log, BlobStore(context.blob_uri), tasks)
        yield service
        service.stopping.set()
        service.cancel_spawned()


async def until(what: str, condition: Callable[[], bool], deadline_s: float = 60.0) -> None:
    """Wait until `condition` holds. AssertionError: it did not within the deadline."""
    try:
        async with asyncio.timeout(deadline_s):
            while not condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"waited {deadline_s:g} s {what}") from None
