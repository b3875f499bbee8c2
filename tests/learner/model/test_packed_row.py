"""Packing without padding, dealing out of micro-batches, records that do not fit."""

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learner.batch.decode import to_rollout
from learner.errors import RejectedSequenceError
from learner.model.packed_row import Rollout, assign_micro_batches, filler_row, pack_rollouts
from learner.model.policy import ModelShape
from learner.router_replay.routes import NATIVE
from schemas import (
    NDArray,
    Ref,
    RolloutCompleted,
    Routes,
    Sampling,
    encode,
)
from streams.blobs.store import BlobStore
from tests.builders import planned_sequence, record_at, rollout_completed

SHAPE = ModelShape(vocabulary=32, max_tokens=12, moe_layers=2, top_k=2, experts=4)
REF = Ref("rollouts", 0, 5)


def rollout(prompt: int, response: int, *, routes: bool = True, advantage: float = 1.0) -> Rollout:
    tokens = torch.arange(prompt + response)
    recorded = torch.zeros((prompt + response, 2, 2), dtype=torch.int16) + torch.arange(2, dtype=torch.int16)
    return Rollout("r", tokens, prompt, torch.zeros(response), recorded if routes else None, advantage, 0.0)


def test_a_row_says_which_sequences_are_of_unanimous_groups() -> None:
    plain, correct, wrong = rollout(1, 2), replace(rollout(1, 1), unanimous="correct"), rollout(2, 0)
    wrong = replace(wrong, unanimous="wrong")
    unanimous = pack_rollouts([plain, correct, wrong]).unanimous
    assert unanimous is not None and unanimous.tolist() == [0, 1, -1]
    assert pack_rollouts([plain, plain]).unanimous is None and filler_row().unanimous is None


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 6), st.booleans()), min_size=1, max_size=8))
def test_every_response_token_is_predicted_from_the_row_before_it(lengths: list[tuple[int, int, bool]]) -> None:
    rollouts = [rollout(p, r, routes=routes, advantage=float(i)) for i, (p, r, routes) in enumerate(lengths)]
    row = pack_rollouts(rollouts)
    assert len(row.tokens) == len(row.position_ids) == sum(p + r for p, r, _ in lengths)
    assert torch.equal(row.tokens[row.predictors + 1], row.targets)
    assert row.seq.bincount(minlength=len(lengths)).tolist() == [r for _, r, _ in lengths]
    assert torch.equal(row.advantage, row.seq.to(torch.float32))
    starts = (row.position_ids == 0).nonzero().flatten().tolist()
    assert len(starts) == len(lengths)
    # A response token's predictor lies in the sequence it belongs to.
    for s, predictor in zip(row.seq.tolist(), row.predictors.tolist(), strict=True):
        assert starts[s] <= predictor < starts[s] + sum(lengths[s][:2])
    if any(routes for *_, routes in lengths):
        assert row.routes is not None and len(row.routes) == len(row.tokens)
        for start, (p, r, routes) in zip(starts, lengths, strict=True):
            assert bool((row.routes[start : start + p + r] == NATIVE).all()) is not routes
    else:
        assert row.routes is None


def test_a_sequence_without_prompt_cannot_be_packed() -> None:
    with pytest.raises(ValueError, match="rollout r has no prompt token"):
        pack_rollouts([rollout(0, 3)])
    with pytest.raises(ValueError, match="at least one sequence"):
        pack_rollouts([])


def test_a_filler_has_nothing_to_train_on() -> None:
    assert len(filler_row().tokens) == 1 and len(filler_row().targets) == 0 and filler_row().num_seqs == 0


@given(st.lists(st.lists(st.lists(st.integers(), max_size=3), max_size=4), min_size=1, max_size=4), st.integers(1, 5))
def test_every_micro_batch_is_dealt_to_one_rank(ranks: list[list[list[int]]], world: int) -> None:
    dealt = assign_micro_batches(ranks, world)
    assert len(dealt) == world
    assert sorted(m for rank in dealt for m in rank) == sorted(tuple(m) for rank in ranks for m in rank)
    if len(ranks) == world:
        assert dealt == [[tuple(micro) for micro in rank] for rank in ranks]
    else:
        sizes = [len(rank) for rank in dealt]
        assert max(sizes) - min(sizes) <= 1


def completed(**changes: object) -> RolloutCompleted:
    routes = np.array([[[0, 1], [2, 3]]] * 5, dtype=np.uint8)
    routes[1, 0] = 255
    event = rollout_completed(
        "g.0",
        0,
        samples=8,
        prompt=(1, 2),
        response=(3, 4, 5),
        logprobs=NDArray.of(np.array([-1, -2, -3], dtype=np.float32)),
        routes=routes_of(routes),
    )
    return msgspec.structs.replace(event, **changes)


def nan_logprobs() -> bytes:
    """As a producer of another make might write it: the event itself cannot be made."""
    whole, good = encode(completed()), np.array([-1, -2, -3], dtype=np.float32).tobytes()
    assert whole.count(good) == 1
    return whole.replace(good, np.array([-1, np.nan, -3], dtype=np.float32).tobytes())


def routes_of(array: np.ndarray, first_token: int = 0) -> Routes:
    return Routes(
        experts=4, shape=array.shape, dtype="u1", sentinel=255, first_token=first_token, data=NDArray.of(array)
    )


def convert(event: RolloutCompleted | bytes, tmp_path: Path, shape: ModelShape = SHAPE, **changes: object) -> Rollout:
    planned = planned_sequence("g.0.0", REF, advantage=0.5, prompt_tokens=2, response_tokens=3, oldest_version=7)
    data = event if isinstance(event, bytes) else encode(event)
    record = record_at("rollouts", 5, data)
    blobs = BlobStore((tmp_path / "blobs").as_uri())
    return to_rollout(msgspec.structs.replace(planned, **changes), record, shape, blobs, batch=9)


def test_a_record_becomes_tensors_and_unrecorded_routes_are_native(tmp_path: Path) -> None:
    got = convert(completed(), tmp_path)
    assert got.tokens.tolist() == [1, 2, 3, 4, 5] and got.prompt_tokens == 2 and got.staleness == 2
    assert got.logp_rollout.tolist() == [-1, -2, -3]
    assert got.routes is not None
    assert got.routes[0].tolist() == [[0, 1], [2, 3]] and got.routes[1].tolist() == [[-1, -1], [2, 3]]


def test_tokens_before_the_first_recorded_one_are_native(tmp_path: Path) -> None:
    recorded = np.array([[[0, 1], [2, 3]]] * 3, dtype=np.uint8)
    got = convert(completed(routes=routes_of(recorded, first_token=2)), tmp_path)
    assert got.routes is not None
    assert bool((got.routes[:2] == NATIVE).all()) and bool((got.routes[2:] != NATIVE).all())


def test_routes_from_the_blob_store_are_the_same(tmp_path: Path) -> None:
    event = completed()
    assert event.routes is not None and event.routes.data is not None
    blob = BlobStore((tmp_path / "blobs").as_uri()).put("r", bytes(event.routes.data.data))
    stored = msgspec.structs.replace(event, routes=msgspec.structs.replace(event.routes, data=None, blob=blob))
    inline, fetched = convert(event, tmp_path).routes, convert(stored, tmp_path).routes
    assert inline is not None and fetched is not None and torch.equal(inline, fetched)
    gone = msgspec.structs.replace(blob, uri=blob.uri + "x")
    assert stored.routes is not None
    missing = msgspec.structs.replace(stored, routes=msgspec.structs.replace(stored.routes, blob=gone))
    with pytest.raises(RejectedSequenceError, match="is not there"):
        convert(missing, tmp_path)


@pytest.mark.parametrize(
    ("event", "sentence"),
    [
        (b"junk", "no event"),
        (completed(rollout_id="g.0.1"), "rollout g.0.1 and not g.0.0"),
        (completed(response_ids=NDArray.of(np.array([3, 32, 5], dtype=np.uint32))), "token id 32"),
        (nan_logprobs(), "no event"),
        (completed(sampling=Sampling(max_tokens=8, top_p=0.9)), "temperature 1, top_p 0.9, top_k 0"),
        (completed(sampling=Sampling(max_tokens=8, temperature=0.0)), "temperature 0, top_p 1, top_k 0"),
        (completed(routes=routes_of(np.full((5, 3, 2), 255, dtype=np.uint8))), "3 layers"),
        (completed(routes=routes_of(np.array([[[0, 4], [2, 3]]] * 5, dtype=np.uint8))), "expert 4 of 4"),
        (completed(routes=routes_of(np.array([[[1, 1], [2, 3]]] * 5, dtype=np.uint8))), "one expert twice"),
        (completed(routes=routes_of(np.array([[[1, 255], [2, 3]]] * 5, dtype=np.uint8))), "expert 255 of 4"),
    ],
    ids=["bytes", "identity", "vocabulary", "nan", "nucleus", "greedy", "layers", "expert", "twice", "half a sentinel"],
)
def test_what_does_not_fit_is_refused_in_one_sentence(
    event: RolloutCompleted | bytes, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(RejectedSequenceError, match=sentence):
        convert(event, tmp_path)


def test_what_the_plan_says_must_fit_too(tmp_path: Path) -> None:
    with pytest.raises(RejectedSequenceError, match="advantage nan"):
        convert(completed(), tmp_path, advantage=float("nan"))
    with pytest.raises(RejectedSequenceError, match="5 tokens are not the 4 that its micro-batch has room for"):
        convert(completed(), tmp_path, response_tokens=2)
    with pytest.raises(RejectedSequenceError, match="5 tokens are more than the 4"):
        convert(completed(), tmp_path, shape=ModelShape(32, 4, 2, 2, 4))


def test_the_temperature_comes_with_the_rollout(tmp_path: Path) -> None:
    warm = convert(completed(sampling=Sampling(max_tokens=8, temperature=0.5)), tmp_path)
    plain = convert(completed(), tmp_path)
    assert (warm.temperature, plain.temperature) == (0.5, 1.0)
    assert pack_rollouts([plain]).temperature is None
    packed = pack_rollouts([plain, warm]).temperature
    assert packed is not None and packed.tolist() == [1.0] * 3 + [0.5] * 3
