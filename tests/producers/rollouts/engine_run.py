"""Requests to a producer with a real engine, weights for it, and what its rollouts must be."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from producers.rollouts.prompt_encoder import PromptEncoder
from schemas import (
    Canary,
    CanaryScored,
    Event,
    GroupRequested,
    NDArray,
    RolloutCompleted,
    Sampling,
    WeightFile,
    WeightsApplied,
    WeightsRefused,
)
from streams.blobs.store import BlobStore
from streams.record import Output, Record
from tests.builders import group_requested, weights_published

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

MODEL = Path(__file__).parents[3] / "models" / "tiny-moe"
REPEATED = 5
"""As in `prompt_killer`, which imports vLLM."""
KILLER = {"logits_processors": ["tests.producers.rollouts.prompt_killer:PromptKiller"]}
SETTINGS = {"model": str(MODEL), "max_model_len": 96, "max_num_seqs": 64, "kv_cache_bytes": 64 << 20}
SAMPLES = 8
START_S = 300.0

CANARY = Canary(
    token_ids=NDArray.of(np.arange(3, 19, dtype=np.uint32).reshape(2, 8)),
    logprobs=NDArray.of(np.zeros((2, 7), np.float32)),
)

Found = list[tuple[Event, Record]]


def request(number: int, prompt: str | None = None, deadline_s: float | None = None) -> GroupRequested:
    text = f"{number % 9 + 1}+{number // 9 % 9 + 1}+{number // 81 % 9 + 1}+7=" if prompt is None else prompt
    return group_requested(
        f"p{number}.0",
        prompt_id=f"p{number}",
        sequence=number,
        sampling=Sampling(max_tokens=64),
        samples=SAMPLES,
        reference="0",
        time_s=time.time(),
        deadline_s=time.time() + 600 if deadline_s is None else deadline_s,
        prompt=text,
    )


async def ask(run: Any, *requests: GroupRequested) -> None:
    await run.write(*(Output("prompts", each, key=each.group_id) for each in requests))


def flip_last_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


async def publish(run: Any, version: int, path: Path, *, damaged: bool = False, canary: Canary | None = None) -> None:
    blobs = BlobStore(run.context.blob_uri)
    blob = await asyncio.to_thread(blobs.put_file, f"weights/v{version}", path)
    if damaged:
        await asyncio.to_thread(flip_last_bit, Path(blob.uri.removeprefix("file://")))
    event = weights_published(
        version, files=(WeightFile(name="model.safetensors", blob=blob),), tensors=1, time_s=time.time(), canary=canary
    )
    await run.write(Output("weights", event, key=str(version)))


def of(found: Found, kind: type) -> list[Any]:
    return [event for event, _ in found if isinstance(event, kind)]


def holds(kind: type, count: int) -> Callable[[Found], bool]:
    return lambda found: len(of(found, kind)) >= count


def has_applied(version: int) -> Callable[[Found], bool]:
    return lambda found: any(each.version == version for each in of(found, WeightsApplied))


def has_refused(version: int) -> Callable[[Found], bool]:
    return lambda found: any(each.version == version for each in of(found, WeightsRefused))


def has_scored(version: int) -> Callable[[Found], bool]:
    return lambda found: any(each.version == version for each in of(found, CanaryScored))


def check(rollout: RolloutCompleted, wanted: GroupRequested, encoder: PromptEncoder) -> None:
    prompt = encoder.encode(wanted.prompt, None)
    tokens = len(rollout.response_ids.numpy())
    assert np.array_equal(rollout.prompt_ids.numpy(), prompt) and 1 <= tokens <= 64
    assert (rollout.logprobs.numpy() <= 0).all() and rollout.task == "sums" and rollout.sampling == wanted.sampling
    assert rollout.routes is not None and rollout.routes.shape == (len(prompt) + tokens, 3, 2)
    assert rollout.routes.experts == 8 and rollout.routes.data is not None
    routes = rollout.routes.data.numpy()
    assert (routes[:-1] < 8).all() and (routes[-1] == rollout.routes.sentinel).all()
    times = rollout.timings
    assert wanted.time_s - 1 < times.received_s <= times.started_s <= times.first_token_s + 0.01
    assert times.first_token_s <= times.finished_s <= rollout.time_s + 0.01
    assert rollout.finish_reason == "stop" or tokens == 64
