"""Honest records of every topic, of tiny rollouts: what hostile ones are made of."""

import time
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from schemas import (
    BatchPlanned,
    BlobRef,
    DeadLetter,
    EngineInfo,
    Event,
    GroupDropped,
    GroupReady,
    GroupRequested,
    Member,
    NDArray,
    PlannedSequence,
    Ref,
    RolloutCompleted,
    RolloutScored,
    RolloutTimings,
    Routes,
    Sampling,
    StepCompleted,
    WeightFile,
    WeightsApplied,
    WeightSpan,
    WeightsPublished,
)

SAMPLES: Final = 4
EXPERTS, LAYERS, TOP_K = 8, 3, 2
PROMPT = (6, 13, 4, 14)  # "3+1=" and "=4" for the tokenizer of models/tiny-moe
RESPONSE = (14, 7)
TOPICS_OF_GROUPS: Final = ("rollouts", "scores")
PAST_S: Final = 1.0
"""The deadline of every request, so that no producer starts to generate."""

Plain = Any


def rollout(group: str, index: int, **fields: Any) -> RolloutCompleted:
    """An honest rollout of four prompt and two response tokens with its routes inline."""
    tokens = len(PROMPT) + len(RESPONSE)
    shape = (tokens, LAYERS, TOP_K)
    routes = np.tile(np.arange(TOP_K, dtype=np.uint8), (tokens, LAYERS, 1))
    defaults: dict[str, Any] = {
        "routes": Routes(experts=EXPERTS, shape=shape, dtype="u1", sentinel=255, data=NDArray.of(routes)),
        "logprobs": NDArray.of(np.full(len(RESPONSE), -0.5, dtype="f4")),
        "deadline_s": PAST_S,
        "requested_s": time.time(),
    }
    return RolloutCompleted(
        rollout_id=f"{group}.{index}", group_id=group, prompt_id=group.partition(".")[0], index=index, attempt=0,
        producer_id="producer-0", request=Ref("prompts", 0, 0), task="sums", samples=SAMPLES, verifier="exact_match",
        reference={"answer": "4" if index % 2 else "5", "after": "="}, spans=(WeightSpan(0, 0),),
        prompt_ids=NDArray.of(np.array(PROMPT, dtype="u4")), response_ids=NDArray.of(np.array(RESPONSE, dtype="u4")),
        sampling=Sampling(max_tokens=8), finish_reason="stop", engine=EngineInfo(name="e", version="0", model="m"),
        timings=RolloutTimings(received_s=1.0, started_s=1.0, first_token_s=1.0, finished_s=2.0), time_s=2.0,
        **(defaults | fields),
    )  # fmt: skip


def score(group: str, index: int) -> RolloutScored:
    """An honest score; of a rollout far beyond the log's end, since nothing checks that here."""
    return RolloutScored(
        rollout_id=f"{group}.{index}", group_id=group, prompt_id=group.partition(".")[0], index=index, attempt=0,
        rollout=Ref("rollouts", 0, 10**9 + int(group.partition(".")[0][1:]) * SAMPLES + index), task="sums",
        samples=SAMPLES, deadline_s=PAST_S, valid=True, time_s=2.0, reward=float(index % 2), passed=float(index % 2),
        prompt_tokens=4, response_tokens=2, requested_s=time.time(),
    )  # fmt: skip


def honest(topic: str, group: str, index: int, blob: BlobRef) -> Event:
    """An event of `topic` that concerns `group` and no other."""
    ref = Ref("rollouts", 0, 10**9)
    number = 10**6 + int(group.partition(".")[0][1:])
    match topic:
        case "prompts":
            return GroupRequested(
                group_id=group, prompt_id=group.partition(".")[0], visit=0, sequence=number, task="sums",
                samples=SAMPLES, sampling=Sampling(max_tokens=8), verifier="exact_match",
                reference={"answer": "4", "after": "="}, time_s=1.0, deadline_s=PAST_S, prompt="3+1=",
            )  # fmt: skip
        case "rollouts":
            return rollout(group, index)
        case "scores":
            return score(group, index)
        case "groups":
            members = tuple(Member(rollout_id=f"{group}.{k}", rollout=ref, response_tokens=2) for k in range(2))
            return GroupReady(
                group_id=group, prompt_id="p", task="sums", members=members, reward_mean=0.5, reward_std=0.5,
                time_s=2.0, deadline_s=PAST_S,
            )  # fmt: skip
        case "batches":
            if index % 2:
                return GroupDropped(group_id=group, prompt_id="p", task="sums", reason="stale", members=(), time_s=2.0)
            planned = PlannedSequence(
                rollout_id=f"{group}.0", rollout=ref, advantage=1.0, reward=1.0, prompt_tokens=4, response_tokens=2,
                oldest_version=0,
            )  # fmt: skip
            return BatchPlanned(
                batch=number, groups=(group,), sequences=(planned,), ranks=(((0,),),), token_budget=64, time_s=2.0
            )
        case "steps":
            return StepCompleted(
                step=number, batch=number, batch_ref=Ref("batches", 0, 10**9), version=0, metrics={"loss": 0.5},
                time_s=2.0,
            )  # fmt: skip
        case "weights":
            return WeightsPublished(
                version=number, kind="full", precision="bf16", files=(WeightFile(name="model", blob=blob),), tensors=1,
                parent_step=0, time_s=2.0,
            )  # fmt: skip
        case "applied":
            return WeightsApplied(producer_id=group, version=0, time_s=2.0)
        case "dead-letters":
            return DeadLetter(source=Ref("rollouts", 0, number), stage="rewards", error=group, data=b"junk", time_s=2.0)
        case _:
            raise ValueError(f"topic {topic!r} has no honest event")


def leaves(plain: Plain) -> Iterator[tuple[Plain, Any]]:
    items = plain.items() if isinstance(plain, dict) else enumerate(plain)
    for name, value in list(items):
        if isinstance(value, dict | list) and value:
            yield from leaves(value)
        else:
            yield plain, name
