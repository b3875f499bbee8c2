"""Weights on the wire as version 2 of the contract wrote them: deltas, digests, canaries."""

import json
from pathlib import Path

import numpy as np
import pytest

import schemas
from schemas import Event

GOLDEN = Path(__file__).parent / "golden-2.json"
"""Hexadecimal bytes by the name of the example; written once by `examples`, never changed."""

BLOB = schemas.BlobRef(uri="file:///b/x", size=3, digest="sha256:00ff")
CANARY = schemas.Canary(
    token_ids=schemas.NDArray.of(np.array([[3, 4, 5]], "u4")),
    logprobs=schemas.NDArray.of(np.array([[-1.5, -0.25]], "f4")),
)


def published(**changes: object) -> schemas.WeightsPublished:
    fields: dict[str, object] = {
        "version": 5,
        "kind": "delta",
        "precision": "fp8",
        "files": (schemas.WeightFile(name="delta-00001-of-00001.bin", blob=BLOB),),
        "tensors": 93,
        "parent_step": 5,
        "time_s": 9.5,
        "base_version": 4,
        "base_digest": "sha256:aa",
        "digest": "sha256:bb",
        "canary": CANARY,
    }
    return schemas.WeightsPublished(**{**fields, **changes})  # type: ignore[arg-type]


def examples() -> dict[str, Event]:
    return {
        "delta": published(),
        "full": published(kind="full", base_version=None, base_digest=None),
    }


@pytest.mark.parametrize("name", examples())
def test_golden_bytes_of_version_2(name: str) -> None:
    golden = bytes.fromhex(json.loads(GOLDEN.read_text())[name])
    assert schemas.encode(examples()[name]) == golden
    assert schemas.decode(golden) == examples()[name]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"base_version": None}, "weights 5 are a delta without base_version"),
        ({"base_digest": None}, "weights 5 are a delta without base_version"),
        ({"digest": None}, "weights 5 are a delta without base_version"),
        ({"base_version": 5}, "a delta on weights 5, which are not older"),
    ],
)
def test_a_delta_names_its_base_and_both_states(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        published(**changes)


@pytest.mark.parametrize(
    ("ids", "logprobs", "sentence"),
    [
        (np.zeros((1, 3), "u2"), np.zeros((1, 2), "f4"), "that are not u4"),
        (np.zeros(3, "u4"), np.zeros(2, "f4"), "that are not u4"),
        (np.zeros((1, 3), "u4"), np.zeros((1, 3), "f4"), "log-probs for ids"),
        (np.zeros((1, 3), "u4"), np.full((1, 2), np.inf, "f4"), "not finite"),
    ],
)
def test_a_canary_that_contradicts_itself_is_refused(ids: np.ndarray, logprobs: np.ndarray, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        schemas.Canary(token_ids=schemas.NDArray.of(ids), logprobs=schemas.NDArray.of(logprobs))
