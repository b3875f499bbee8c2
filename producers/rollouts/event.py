"""A finished generation as the event that goes on the log."""

import asyncio

import numpy as np
import numpy.typing as npt

from producers.rollouts.engine.generation import Generation
from producers.rollouts.engine.routes import RouteArray, sentinel
from schemas.arrays import NDArray
from schemas.events import GroupRequested, RolloutCompleted
from schemas.identity import rollout_id
from schemas.parts import EngineInfo, Ref, RolloutTimings, Routes
from streams.blobs.store import BlobStore


def is_finite(generation: Generation) -> bool:
    """Whether every log-prob is a number that can be trained on."""
    return bool(np.isfinite(generation.logprobs).all())


async def routes_on_wire(
    name: str, routes: npt.NDArray[RouteArray], experts: int, blobs: BlobStore, inline_max_bytes: int
) -> Routes:
    """`routes` u1 or u2 `[tokens, moe_layers, top_k]` inline, or above `inline_max_bytes` as a claim check.

    The blob is complete before this returns, and so before the event that names it. OSError: the store failed.
    """
    array = NDArray.of(routes)
    inline = routes.nbytes <= inline_max_bytes
    return Routes(
        experts=experts,
        shape=(routes.shape[0], routes.shape[1], routes.shape[2]),
        dtype="u1" if routes.itemsize == 1 else "u2",
        sentinel=sentinel(routes.dtype),
        data=array if inline else None,
        blob=None if inline else await asyncio.to_thread(blobs.put, f"routes/{name}", array.data),
    )


def completed(
    request: GroupRequested,
    where: Ref,
    generation: Generation,
    *,
    index: int,
    attempt: int,
    prompt_ids: npt.NDArray[np.uint32],
    routes: Routes | None,
    producer_id: str,
    engine: EngineInfo,
    received_s: float,
    now_s: float,
) -> RolloutCompleted:
    """The event of sample `index` of `request`, which is at `where`. ValueError: the generation contradicts itself."""
    return RolloutCompleted(
        rollout_id=rollout_id(request.group_id, index),
        group_id=request.group_id,
        prompt_id=request.prompt_id,
        index=index,
        attempt=attempt,
        producer_id=producer_id,
        request=where,
        task=request.task,
        samples=request.samples,
        verifier=request.verifier,
        reference=request.reference,
        deadline_s=request.deadline_s,
        prompt_ids=NDArray.of(prompt_ids),
        response_ids=NDArray.of(generation.response_ids),
        logprobs=NDArray.of(generation.logprobs),
        spans=generation.spans,
        sampling=request.sampling,
        finish_reason=generation.finish_reason,
        engine=engine,
        timings=RolloutTimings(
            received_s=received_s,
            started_s=generation.started_s,
            first_token_s=generation.first_token_s,
            finished_s=generation.finished_s,
        ),
        requested_s=request.time_s,
        time_s=now_s,
        routes=routes,
        purpose=request.purpose,
        evaluation=request.evaluation,
    )
