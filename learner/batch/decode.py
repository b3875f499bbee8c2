"""Decodes a record of `rollouts` into a sequence to train on, and refuses whatever does not fit the model."""

import itertools
import math

import numpy as np
import torch

from learner.errors import RejectedSequenceError
from learner.model.packed_row import Rollout
from learner.model.policy import ModelShape
from learner.router_replay.routes import NATIVE
from schemas import NDArray, PlannedSequence, RolloutCompleted, Routes, UndecodableError, check_schema, decode
from schemas.digests import sequence_digest
from streams.blobs.store import BlobStore
from streams.errors import BlobError
from streams.record import Record
from streams.telemetry import names


def to_rollout(planned: PlannedSequence, record: Record, shape: ModelShape, blobs: BlobStore, batch: int) -> Rollout:
    """The rollout of one planned sequence of batch number `batch`; shapes and dtypes as `Rollout` documents them.

    Blocking: routes may lie in the blob store. RejectedSequenceError, one sentence: the record is not the planned
    rollout, or it does not fit the model.
    """
    event = _completed(planned, record)
    ids = np.concatenate([event.prompt_ids.numpy(), event.response_ids.numpy()]).astype(np.int64)
    prompt_tokens = event.prompt_ids.shape[0]
    if prompt_tokens < 1 or len(ids) == prompt_tokens:
        raise RejectedSequenceError(f"{prompt_tokens} prompt and {len(ids) - prompt_tokens} response tokens")
    if len(ids) > shape.max_tokens:
        raise RejectedSequenceError(f"{len(ids)} tokens are more than the {shape.max_tokens} that the model takes")
    if ids.max() >= shape.vocabulary:
        raise RejectedSequenceError(f"token id {ids.max()} is not below the vocabulary's {shape.vocabulary}")
    planned_tokens = planned.prompt_tokens + planned.response_tokens
    if len(ids) != planned_tokens:
        raise RejectedSequenceError(f"{len(ids)} tokens are not the {planned_tokens} that its micro-batch has room for")
    sampling = event.sampling
    if sampling.temperature == 0 or sampling.top_p != 1 or sampling.top_k != 0:
        raise RejectedSequenceError(
            f"sampled with temperature {sampling.temperature:g}, top_p {sampling.top_p:g}, top_k {sampling.top_k}: the "
            f"policy has no density of its own there; allowed are temperature above 0, top_p 1 and top_k 0"
        )
    if not (math.isfinite(planned.advantage) and math.isfinite(planned.reward)):
        raise RejectedSequenceError(f"advantage {planned.advantage} or reward {planned.reward} is not finite")
    return Rollout(
        rollout_id=planned.rollout_id,
        tokens=torch.from_numpy(ids),
        prompt_tokens=prompt_tokens,
        logp_rollout=torch.from_numpy(event.logprobs.numpy().astype(np.float32)),
        routes=None if event.routes is None else _routes(event.routes, len(ids), shape, blobs),
        advantage=planned.advantage,
        reward=planned.reward,
        staleness=batch - planned.oldest_version,
        temperature=sampling.temperature,
        unanimous=planned.unanimous,
        sampled=None if event.sampled is None else torch.from_numpy(event.sampled),
        digest=sequence_digest(planned, event),
    )


def _completed(planned: PlannedSequence, record: Record) -> RolloutCompleted:
    try:
        check_schema(record.headers.get(names.SCHEMA, b""))
        event = decode(record.value)
    except UndecodableError as error:
        raise RejectedSequenceError(str(error)) from error
    if not isinstance(event, RolloutCompleted):
        raise RejectedSequenceError(f"record is a {type(event).__name__} and not a RolloutCompleted")
    if event.rollout_id != planned.rollout_id:
        raise RejectedSequenceError(f"record is rollout {event.rollout_id} and not {planned.rollout_id}")
    return event


def _routes(routes: Routes, tokens: int, shape: ModelShape, blobs: BlobStore) -> torch.Tensor:
    """Routes int16 `[tokens, moe_layers, top_k]`; -1 (native) where the engine recorded none."""
    if routes.shape[1:] != (shape.moe_layers, shape.top_k) or routes.experts != shape.experts:
        raise RejectedSequenceError(
            f"routes are of {routes.shape[1]} layers and top-{routes.shape[2]} of {routes.experts} experts, "
            f"the model has {shape.moe_layers} and top-{shape.top_k} of {shape.experts}"
        )
    recorded = _array(routes, blobs).numpy()
    # By slot: comparing the top_k slots pairwise as long rows is ten times faster than sorting millions of short ones.
    slots = np.ascontiguousarray(np.moveaxis(recorded, -1, 0))
    missing = (slots == routes.sentinel).all(axis=0)
    beyond = (slots >= shape.experts).any(axis=0) & ~missing
    if beyond.any():
        raise RejectedSequenceError(f"routes name expert {recorded[beyond].max()} of {shape.experts}")
    twice = np.zeros_like(missing)
    for one, other in itertools.combinations(slots, 2):
        twice |= one == other
    if (twice & ~missing).any():
        raise RejectedSequenceError("routes name one expert twice for one token")
    whole = np.full((tokens, shape.moe_layers, shape.top_k), NATIVE, dtype=np.int16)
    np.copyto(whole[routes.first_token :], recorded, casting="same_kind", where=~missing[..., np.newaxis])
    return torch.from_numpy(whole)


def _array(routes: Routes, blobs: BlobStore) -> NDArray:
    if routes.data is not None:
        return routes.data
    assert routes.blob is not None
    try:
        return NDArray(routes.dtype, routes.shape, memoryview(blobs.get(routes.blob)))
    except (BlobError, OSError, ValueError) as error:
        raise RejectedSequenceError(f"routes cannot be read: {error}") from error
