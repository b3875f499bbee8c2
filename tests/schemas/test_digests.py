"""The digest of a step: stated in bytes, the same for every division over ranks, and another for any other content."""

import hashlib
import struct
from typing import Any

import numpy as np
import pytest

from schemas import NDArray, PlannedSequence, Ref, Sampling, decode, encode
from schemas.digests import sequence_digest, step_digest
from tests.builders import rollout_completed


def planned(**changes: Any) -> PlannedSequence:
    fields: dict[str, Any] = {
        "rollout_id": "p.0.0", "rollout": Ref("rollouts", 0, 0), "advantage": 0.5, "reward": 1.0,
        "prompt_tokens": 1, "response_tokens": 2, "oldest_version": 0,
    }  # fmt: skip
    return PlannedSequence(**(fields | changes))


def test_it_is_what_the_documentation_says() -> None:
    parts = [
        b"p.0.0",
        struct.pack("<d", 0.5),
        b"",
        struct.pack("<d", 1.0),
        np.array([1], "<u4").tobytes(),
        np.array([2, 3], "<u4").tobytes(),
        b"\x01\x01",
        np.array([-0.5, -0.5], "<f4").tobytes(),
    ]
    stated = hashlib.sha256(b"".join(struct.pack("<Q", len(part)) + part for part in parts)).digest()
    assert sequence_digest(planned(), rollout_completed()) == stated
    assert step_digest([stated, stated]) == f"sha256:{hashlib.sha256(stated + stated).hexdigest()}"


def test_it_survives_the_wire_and_a_mask_of_ones_is_none() -> None:
    rollout = rollout_completed()
    ones = rollout_completed(loss_mask=NDArray.of(np.ones(2, "u1")))
    expected = sequence_digest(planned(), rollout)
    for each in (rollout, ones):
        read = decode(encode(each))
        assert sequence_digest(planned(), read) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sequence", "rollout"),
    [
        ({"rollout_id": "p.0.1"}, {}),
        ({"advantage": -0.5}, {}),
        ({"unanimous": "correct"}, {}),
        ({}, {"sampling": Sampling(max_tokens=8, temperature=0.5)}),
        ({}, {"prompt": (2,)}),
        ({}, {"response": (2, 4)}),
        ({}, {"logprobs": NDArray.of(np.array([-0.5, -0.25], "f4"))}),
        (
            {},
            {
                "loss_mask": NDArray.of(np.array([1, 0], "u1")),
                "logprobs": NDArray.of(np.array([-0.5, 0.0], "f4")),
            },
        ),
    ],
)
def test_other_content_is_another_digest(sequence: dict[str, Any], rollout: dict[str, Any]) -> None:
    assert sequence_digest(planned(**sequence), rollout_completed(**rollout)) != sequence_digest(
        planned(), rollout_completed()
    )


def test_what_is_only_reported_is_no_part_of_it() -> None:
    assert sequence_digest(planned(reward=0.0, oldest_version=3), rollout_completed(producer_id="other")) == (
        sequence_digest(planned(), rollout_completed())
    )


def test_where_a_part_ends_matters() -> None:
    one = sequence_digest(planned(), rollout_completed(prompt=(1, 2), response=(3, 3)))
    other = sequence_digest(planned(), rollout_completed(prompt=(1,), response=(2, 3)))
    assert one != other
    assert step_digest([one, other]) != step_digest([other, one])
