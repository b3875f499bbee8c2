"""A record of the log becomes a sequence to train on, or is rejected; no record raises anything else."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from learner.batch.decode import to_rollout
from learner.model.policy import ModelShape
from learner.router_replay.routes import NATIVE
from schemas import (
    EngineInfo,
    NDArray,
    PlannedSequence,
    Ref,
    RolloutCompleted,
    RolloutTimings,
    Routes,
    Sampling,
    UndecodableError,
    WeightSpan,
    decode,
    encode,
)
from streams.blobs.store import BlobStore
from streams.record import Record

SHAPE = ModelShape(vocabulary=32, max_tokens=64, moe_layers=1, top_k=2, experts=300)
PLANNED = PlannedSequence(
    rollout_id="p.0.0", rollout=Ref("rollouts", 0, 0), advantage=1.0, reward=1.0, prompt_tokens=1, response_tokens=2,
    oldest_version=0,
)  # fmt: skip


def record(sentinel: int) -> Record:
    routes = np.array([[[299, 0]], [[65535, 65535]], [[1, 2]]], dtype="u2")
    event = RolloutCompleted(
        rollout_id="p.0.0", group_id="p.0", prompt_id="p", index=0, attempt=0, producer_id="producer-0",
        request=Ref("prompts", 0, 0), task="sums", samples=1, verifier="exact_match", reference="4", deadline_s=1.0,
        prompt_ids=NDArray.of(np.array([1], dtype="u4")), response_ids=NDArray.of(np.array([2, 3], dtype="u4")),
        logprobs=NDArray.of(np.zeros(2, dtype="f4")), spans=(WeightSpan(0, 0),), sampling=Sampling(max_tokens=2),
        finish_reason="stop", engine=EngineInfo(name="e", version="0", model="m"),
        timings=RolloutTimings(received_s=1.0, started_s=1.0, first_token_s=1.0, finished_s=1.0), requested_s=1.0,
        time_s=1.0,
        routes=Routes(experts=300, shape=(3, 1, 2), dtype="u2", sentinel=sentinel, data=NDArray.of(routes)),
    )  # fmt: skip
    return Record("rollouts", 0, 0, None, encode(event), {}, 1.0)


def test_what_all_of_a_group_were_reaches_the_learner(tmp_path: Path) -> None:
    planned = msgspec.structs.replace(PLANNED, unanimous="wrong")
    blobs = BlobStore(tmp_path.as_uri())
    assert to_rollout(planned, record(65535), SHAPE, blobs, 0).unanimous == "wrong"
    assert to_rollout(PLANNED, record(65535), SHAPE, blobs, 0).unanimous is None


def test_a_sentinel_of_sixteen_bits_is_read(tmp_path: Path) -> None:
    rollout = to_rollout(PLANNED, record(65535), SHAPE, BlobStore(tmp_path.as_uri()), 0)
    assert rollout.routes is not None
    assert rollout.routes.tolist() == [[[299, 0]], [[NATIVE, NATIVE]], [[1, 2]]]


@pytest.mark.parametrize("sentinel", [-1, 65536, 2**63])
def test_a_sentinel_of_more_bits_is_no_event(sentinel: int) -> None:
    with pytest.raises(UndecodableError, match="sentinel"):
        decode(record(sentinel).value)
