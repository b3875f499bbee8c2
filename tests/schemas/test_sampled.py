"""Rollouts of which not every token was sampled, metadata of prompts, digests of steps: bytes, and what is refused."""

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import schemas
from schemas import NDArray, Turn, WeightSpan
from schemas.parts import MAX_METADATA_BYTES, MAX_TURNS
from tests.builders import group_requested, rollout_completed, rollout_scored, step_completed, weights_published

GOLDEN = Path(__file__).parent / "golden-4.json"
"""Hexadecimal bytes of the fields that version 4 added; written once by `EXAMPLES`, never changed."""

LOGPROBS = [-0.5, -0.25, 0.0, 0.0, -1.0]
TURNS = (Turn(0, "assistant"), Turn(2, "tool"), Turn(4, "assistant"))


def f4(values: list[float]) -> NDArray:
    return NDArray.of(np.array(values, "f4"))


def mask(*entries: int) -> NDArray:
    return NDArray.of(np.array(entries, "u1"))


def agentic(**changes: Any) -> schemas.RolloutCompleted:
    """Two tokens of the policy, two of a tool, one of the policy."""
    fields: dict[str, Any] = {"logprobs": f4(LOGPROBS), "loss_mask": mask(1, 1, 0, 0, 1), "turns": TURNS}
    return rollout_completed(response=(5, 6, 7, 8, 9), **(fields | changes))


EXAMPLES: dict[str, schemas.Event] = {
    "CanaryScored": schemas.CanaryScored(
        producer_id="producer-1", version=3, logprobs=f4([-0.5, -1.0]), time_s=1.5, set_digest="ab"
    ),
    "GroupRequested": group_requested(
        metadata={"source": "MATH", "level": 5, "subject": ["algebra", None], "solved": {"share": 0.25, "ever": True}}
    ),
    "RolloutCompleted": agentic(),
    "RolloutScored": rollout_scored(prompt_tokens=1, response_tokens=5, sampled_tokens=3),
    "DeadLetter": schemas.DeadLetter(
        source=schemas.Ref("prompts", 0, 7), stage="producer", error="e", data=b"d", time_s=1.5, config_digest="ab"
    ),
    "DeadLetterPurged": schemas.DeadLetterPurged(
        source=schemas.Ref("prompts", 0, 7), stage="producer", error="e", refused_s=1.0, time_s=1.5, config_digest="ab"
    ),
    "StepCompleted": step_completed(3, trained_digest="sha256:aa", config_digest="sha256:bb"),
    "WeightsPublished": weights_published(
        3,
        canary=schemas.Canary(
            token_ids=NDArray.of(np.array([[4, 5, 6], [7, 8, 0]], "u4")),
            logprobs=NDArray.of(np.array([[-0.5, -1.0], [-0.25, 0.0]], "f4")),
            judged=NDArray.of(np.array([[0, 1], [1, 0]], "u1")),
            rounding=0.0125,
        ),
    ),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_golden_bytes_of_the_new_fields(name: str) -> None:
    golden = bytes.fromhex(json.loads(GOLDEN.read_text())[name])
    assert schemas.encode(EXAMPLES[name]) == golden
    assert schemas.decode(golden) == EXAMPLES[name]


def test_without_them_a_record_is_the_same_bytes_and_the_same_version() -> None:
    plain = rollout_completed()
    assert not {"loss_mask", "turns"} & msgspec.msgpack.decode(schemas.encode(plain)).keys()
    assert "sampled_tokens" not in msgspec.msgpack.decode(schemas.encode(rollout_scored()))
    assert "metadata" not in msgspec.msgpack.decode(schemas.encode(group_requested()))
    assert not {"trained_digest", "config_digest"} & msgspec.msgpack.decode(schemas.encode(step_completed(0))).keys()
    assert schemas.schema_header(plain) == b"RolloutCompleted/1"


def test_a_reader_that_would_train_on_the_given_tokens_refuses_the_record() -> None:
    assert schemas.schema_header(agentic()) == b"RolloutCompleted/2"
    assert schemas.schema_header(EXAMPLES["GroupRequested"]) == b"GroupRequested/1"
    assert schemas.schema_header(EXAMPLES["StepCompleted"]) == b"StepCompleted/1"


def test_what_was_sampled_is_counted() -> None:
    assert (agentic().sampled_tokens, rollout_completed().sampled_tokens) == (3, 2)
    assert [run.numpy().tolist() for run in agentic().sampled_runs] == [[5, 6], [9]]
    assert rollout_completed().sampled_runs == [rollout_completed().response_ids]
    assert rollout_scored(response_tokens=5).generated_tokens == 5
    assert rollout_scored(response_tokens=5, sampled_tokens=3).generated_tokens == 3
    assert rollout_completed().sampled is None
    np.testing.assert_array_equal(agentic().sampled, [True, True, False, False, True])


@pytest.mark.parametrize(
    ("firsts", "versions"), [((0, 2, 4), [7, 9]), ((0, 3), [7, 8]), ((0, 1, 3), [7, 8, 9]), ((0, 4, 5), [7, 8])]
)
def test_a_span_without_a_sampled_token_is_no_version_that_was_sampled_with(
    firsts: tuple[int, ...], versions: list[int]
) -> None:
    spans = tuple(WeightSpan(first, 7 + number) for number, first in enumerate(firsts))
    assert agentic(spans=spans).sampled_versions == versions
    every = [span.version for span in spans]
    assert agentic(spans=spans, loss_mask=None, turns=()).sampled_versions == every


def test_a_mask_needs_no_turns_and_turns_of_the_policy_alone_need_no_mask() -> None:
    assert agentic(turns=()).turns == ()
    assert rollout_completed(turns=(Turn(0, "assistant"), Turn(1, "assistant"))).loss_mask is None
    assert agentic(loss_mask=mask(1, 0, 0, 0, 1), logprobs=f4([-0.5, 0.0, 0.0, 0.0, -1.0])).sampled_tokens == 2


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"loss_mask": mask(1, 1, 0, 0)}, r"has a loss_mask u1\[4\] for 5 response tokens"),
        ({"loss_mask": NDArray.of(np.ones((5, 1), "u1"))}, r"has a loss_mask u1\[5, 1\] for 5 response tokens"),
        ({"loss_mask": NDArray.of(np.array([1, 1, 0, 0, 1], "i4"))}, r"has a loss_mask i4\[5\]"),
        ({"loss_mask": mask(1, 1, 0, 0, 2)}, r"has a loss_mask with 2; allowed are 0 \(given\) and 1 \(sampled\)"),
        ({"loss_mask": mask(0, 0, 0, 0, 0)}, "by which none of its 5 response tokens was sampled"),
        ({"loss_mask": mask(1, 0, 0, 0, 1)}, "has log-prob -0.25 for response token 1, which its loss_mask says was"),
        ({"loss_mask": None}, "has sampled tokens in the turn of 'tool' from token 2; allowed only in turns"),
        ({"loss_mask": mask(1, 1, 0, 1, 1)}, "has sampled tokens in the turn of 'tool' from token 2"),
        ({"turns": (Turn(1, "assistant"),)}, r"has 1 turns from tokens \[1\] that do not part its 5 response tokens"),
        ({"turns": (Turn(0, "assistant"), Turn(0, "tool"))}, r"has 2 turns from tokens \[0, 0\]"),
        ({"turns": (Turn(0, "assistant"), Turn(5, "tool"))}, r"has 2 turns from tokens \[0, 5\]"),
        ({"turns": tuple(Turn(n, "assistant") for n in range(MAX_TURNS + 1))}, f"has {MAX_TURNS + 1} turns"),
    ],
)
def test_a_mask_that_does_not_fit_or_lies_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        agentic(**changes)
    fields = msgspec.msgpack.decode(schemas.encode(agentic())) | {
        name: msgspec.to_builtins(value, builtin_types=(bytes, memoryview)) for name, value in changes.items()
    }
    with pytest.raises(schemas.UndecodableError, match=sentence):
        schemas.decode(msgspec.msgpack.encode(fields))


def test_a_role_is_short_text() -> None:
    fields = msgspec.msgpack.decode(schemas.encode(agentic()))
    for role in ("", "r" * 65):
        with pytest.raises(schemas.UndecodableError, match="length"):
            schemas.decode(msgspec.msgpack.encode(fields | {"turns": [[0, role]]}))


@pytest.mark.parametrize(
    ("metadata", "sentence"),
    [
        ({"weight": math.nan}, "metadata 'weight' with nan of type float; allowed are text, finite numbers"),
        ({"rows": [{"n": 2**64}]}, "metadata 'rows' with 18446744073709551616 of type int"),
        ({"image": b"png"}, "metadata 'image' with b'png' of type bytes"),
        ({"by id": {1: "one"}}, "metadata 'by id' with {1: 'one'} of type dict"),
        ({"text": "x" * MAX_METADATA_BYTES}, f"metadata of {MAX_METADATA_BYTES + 11} bytes; allowed are"),
    ],
)
def test_metadata_is_plain_json_of_bounded_size(metadata: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"group p.0 has {sentence}"):
        group_requested(metadata=metadata)


def test_metadata_of_bounded_depth() -> None:
    deep: Any = "end"
    for _ in range(32):
        deep = [deep]
    with pytest.raises(ValueError, match=r"group p\.0 has metadata that nests deeper than 32"):
        group_requested(metadata={"deep": deep})
    assert group_requested(metadata={"deep": deep[0]}).metadata == {"deep": deep[0]}
