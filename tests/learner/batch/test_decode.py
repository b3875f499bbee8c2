"""A record of the log becomes a sequence to train on, or is rejected; no record raises anything else."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from learner.batch.decode import to_rollout
from learner.model.policy import ModelShape
from learner.router_replay.routes import NATIVE
from schemas import (
    NDArray,
    Routes,
    UndecodableError,
    decode,
    encode,
)
from streams.blobs.store import BlobStore
from streams.record import Record
from tests.builders import planned_sequence, record_at, rollout_completed

SHAPE = ModelShape(vocabulary=32, max_tokens=64, moe_layers=1, top_k=2, experts=300)
PLANNED = planned_sequence(prompt_tokens=1)


def record(sentinel: int) -> Record:
    routes = np.array([[[299, 0]], [[65535, 65535]], [[1, 2]]], dtype="u2")
    event = rollout_completed(
        samples=1,
        logprobs=NDArray.of(np.zeros(2, dtype="f4")),
        routes=Routes(experts=300, shape=(3, 1, 2), dtype="u2", sentinel=sentinel, data=NDArray.of(routes)),
    )
    return record_at("rollouts", 0, encode(event), time_s=1.0)


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
