"""Honest records of every topic, of tiny rollouts: what hostile ones are made of."""

import time
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from schemas import (
    BlobRef,
    DeadLetter,
    Event,
    NDArray,
    Ref,
    RolloutCompleted,
    RolloutScored,
    Routes,
    WeightFile,
    WeightsApplied,
)
from tests.builders import (
    batch_planned,
    group_dropped,
    group_ready,
    group_requested,
    member,
    planned_sequence,
    prompt_of,
    rollout_completed,
    rollout_scored,
    step_completed,
    weights_published,
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
        "reference": {"answer": "4" if index % 2 else "5", "after": "="},
        "deadline_s": PAST_S,
        "requested_s": time.time(),
    }
    return rollout_completed(group, index, prompt=PROMPT, response=RESPONSE, **(defaults | fields))


def score(group: str, index: int) -> RolloutScored:
    """An honest score; of a rollout far beyond the log's end, since nothing checks that here."""
    beyond = Ref("rollouts", 0, 10**9 + int(prompt_of(group)[1:]) * SAMPLES + index)
    return rollout_scored(
        group, index, rollout=beyond, samples=SAMPLES, deadline_s=PAST_S, time_s=2.0, reward=float(index % 2),
        passed=float(index % 2), prompt_tokens=4, response_tokens=2, requested_s=time.time(),
    )  # fmt: skip


def honest(topic: str, group: str, index: int, blob: BlobRef) -> Event:
    """An event of `topic` that concerns `group` and no other."""
    ref = Ref("rollouts", 0, 10**9)
    number = 10**6 + int(prompt_of(group)[1:])
    match topic:
        case "prompts":
            reference = {"answer": "4", "after": "="}
            return group_requested(group, sequence=number, reference=reference, time_s=1.0, deadline_s=PAST_S)
        case "rollouts":
            return rollout(group, index)
        case "scores":
            return score(group, index)
        case "groups":
            members = (member(f"{group}.{k}", ref.offset, response_tokens=2) for k in range(2))
            return group_ready(group, *members, prompt_id="p", time_s=2.0, deadline_s=PAST_S)
        case "batches":
            if index % 2:
                return group_dropped(group, prompt_id="p", reason="stale", time_s=2.0)
            planned = planned_sequence(f"{group}.0", ref)
            return batch_planned(
                number, groups=(group,), sequences=(planned,), ranks=(((0,),),), token_budget=64, time_s=2.0
            )
        case "steps":
            batch_ref = Ref("batches", 0, 10**9)
            return step_completed(number, batch_ref=batch_ref, version=0, metrics={"loss": 0.5}, time_s=2.0)
        case "weights":
            files = (WeightFile(name="model", blob=blob),)
            return weights_published(number, files=files, tensors=1, parent_step=0, time_s=2.0)
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
