"""Golden bytes of every event, what a newer and an older writer look like, and what events refuse."""

import json
import typing
from pathlib import Path

import msgspec
import numpy as np
import pytest

import schemas
from schemas import Event
from schemas.topics import TOPICS

GOLDEN = Path(__file__).parent / "golden-1.json"
"""Hexadecimal bytes of one event of every type as version 1 wrote them; written once by `examples`, never changed."""

GOLDEN_3 = Path(__file__).parent / "golden-3.json"
"""The same of the types that version 3 added, and of `WeightsApplied`, which says less since then."""

MEMBER = schemas.Member(
    rollout_id="p.0.1",
    rollout=schemas.Ref("rollouts", 2, 17),
    reward=1.0,
    advantage=0.5,
    passed=1.0,
    prompt_tokens=6,
    response_tokens=11,
    oldest_version=3,
    newest_version=4,
)
BLOB = schemas.BlobRef(uri="file:///b/x", size=3, digest="00ff")


def rollout(**changes: object) -> schemas.RolloutCompleted:
    fields: dict[str, object] = {
        "rollout_id": "p.0.1",
        "group_id": "p.0",
        "prompt_id": "p",
        "index": 1,
        "attempt": 0,
        "producer_id": "producer-0",
        "request": schemas.Ref("prompts", 2, 5),
        "task": "sums",
        "samples": 8,
        "verifier": "exact_match",
        "reference": {"answer": "13", "after": "="},
        "deadline_s": 100.0,
        "prompt_ids": schemas.NDArray.of(np.array([3, 11], "u4")),
        "response_ids": schemas.NDArray.of(np.array([5, 6, 2], "u4")),
        "logprobs": schemas.NDArray.of(np.array([-0.5, -0.25, -1.0], "f4")),
        "spans": (schemas.WeightSpan(0, 3), schemas.WeightSpan(2, 4)),
        "sampling": schemas.Sampling(max_tokens=64),
        "finish_reason": "stop",
        "engine": schemas.EngineInfo(name="vllm", version="0.30.0", model="tiny", kv_cache="fp8"),
        "timings": schemas.RolloutTimings(received_s=1.0, started_s=2.0, first_token_s=3.0, finished_s=4.0),
        "requested_s": 0.5,
        "time_s": 4.5,
        "routes": schemas.Routes(
            experts=8,
            shape=(5, 1, 2),
            dtype="u1",
            sentinel=255,
            data=schemas.NDArray.of(np.array([[[0, 1]], [[2, 3]], [[4, 5]], [[6, 7]], [[255, 255]]], "u1")),
        ),
    }
    return schemas.RolloutCompleted(**{**fields, **changes})  # type: ignore[arg-type]


def examples() -> list[Event]:
    """One event of every type with every kind of field in use."""
    return [
        schemas.GroupRequested(
            group_id="p.0",
            prompt_id="p",
            visit=0,
            sequence=4,
            task="sums",
            samples=8,
            sampling=schemas.Sampling(max_tokens=64, temperature=0.7),
            verifier="exact_match",
            reference="13",
            time_s=1.0,
            deadline_s=61.0,
            messages=(schemas.Message(role="user", content="6+7="),),
            version=2,
            predicted_tokens=17,
        ),
        rollout(),
        schemas.RolloutScored(
            rollout_id="p.0.1",
            group_id="p.0",
            prompt_id="p",
            index=1,
            attempt=0,
            rollout=schemas.Ref("rollouts", 2, 17),
            task="sums",
            samples=8,
            deadline_s=61.0,
            valid=True,
            time_s=5.0,
            reward=0.9,
            passed=1.0,
            components=(
                schemas.RewardComponent(name="exact_match", version="1", value=1.0),
                schemas.RewardComponent(name="length", version="1", value=-0.5, weight=0.2),
            ),
            prompt_tokens=6,
            response_tokens=11,
            oldest_version=3,
            newest_version=4,
        ),
        schemas.GroupReady(
            group_id="p.0",
            prompt_id="p",
            task="sums",
            members=(MEMBER, msgspec.structs.replace(MEMBER, disposition="invalid")),
            reward_mean=0.5,
            reward_std=0.5,
            time_s=6.0,
            deadline_s=61.0,
            pass_rate=0.5,
            partial=True,
        ),
        schemas.GroupDropped(
            group_id="p.1",
            prompt_id="p",
            task="sums",
            reason="zero_variance",
            members=(MEMBER,),
            time_s=6.0,
            pass_rate=1.0,
        ),
        schemas.GroupEvaluated(
            group_id="h.0", prompt_id="h", task="sums", evaluation=10, members=(MEMBER,), time_s=6.0, pass_rate=1.0
        ),
        schemas.RolloutDisposed(
            rollout_id="p.0.1",
            group_id="p.0",
            rollout=schemas.Ref("rollouts", 2, 30),
            disposition="duplicate",
            time_s=7.0,
        ),
        schemas.BatchPlanned(
            batch=3,
            groups=("p.0",),
            sequences=(
                schemas.PlannedSequence(
                    rollout_id="p.0.1",
                    rollout=schemas.Ref("rollouts", 2, 17),
                    advantage=0.5,
                    reward=1.0,
                    prompt_tokens=6,
                    response_tokens=11,
                    oldest_version=3,
                ),
            ),
            ranks=(((0,),), ((),)),
            token_budget=1024,
            time_s=8.0,
            loads=(17.0, 0.0),
        ),
        schemas.StepCompleted(
            step=3,
            batch=3,
            batch_ref=schemas.Ref("batches", 0, 6),
            version=4,
            metrics={"loss": 0.125},
            time_s=9.0,
            rejected=(schemas.Rejected(rollout_id="p.0.2", rollout=schemas.Ref("rollouts", 2, 18), reason="NaN"),),
        ),
        schemas.WeightsPublished(
            version=4,
            kind="full",
            precision="bf16",
            files=(schemas.WeightFile(name="model.safetensors", blob=BLOB),),
            tensors=93,
            parent_step=3,
            time_s=9.5,
        ),
        schemas.WeightsApplied(
            producer_id="producer-0",
            version=4,
            time_s=10.0,
            published_s=9.5,
            fetch_s=0.1,
            pause_s=0.03,
            in_flight=7,
        ),
        schemas.CanaryScored(
            producer_id="producer-0", version=4, time_s=10.5, logprobs=schemas.NDArray.of(np.array([[-1.5]], "f4"))
        ),
        schemas.WeightsRefused(producer_id="producer-0", version=5, time_s=10.0),
        schemas.DeadLetter(
            source=schemas.Ref("rollouts", 0, 1),
            stage="rewards",
            error="no event",
            data=b"\xc1junk",
            time_s=11.0,
            key=b"k",
            headers={"run": b"r"},
        ),
        schemas.DeadLetterReplayed(
            source=schemas.Ref("rollouts", 0, 1), stage="rewards", replayed=schemas.Ref("rollouts", 0, 9), time_s=12.0
        ),
        schemas.DeadLetterPurged(
            source=schemas.Ref("scores", 0, 1),
            stage="groups",
            error="no event",
            refused_s=11.0,
            time_s=13.0,
            key=b"k",
            attempts=2,
            ends=(schemas.Ref("rollouts", 0, 1),),
            replayed=schemas.Ref("scores", 0, 9),
        ),
    ]


def test_there_is_an_example_of_every_event_and_every_event_has_a_topic() -> None:
    types = set(typing.get_args(Event))
    assert {type(event) for event in examples()} == types
    assert {event for topic in TOPICS.values() for event in topic.events} == types


@pytest.mark.parametrize("event", examples(), ids=lambda event: type(event).__name__)
def test_golden_bytes_of_every_type(event: Event) -> None:
    written = json.loads(GOLDEN.read_text()) | json.loads(GOLDEN_3.read_text())
    golden = bytes.fromhex(written[type(event).__name__])
    assert schemas.encode(event) == golden
    assert schemas.decode(golden) == event


@pytest.mark.parametrize("event", examples(), ids=lambda event: type(event).__name__)
def test_a_field_of_a_newer_minor_version_is_ignored(event: Event) -> None:
    fields = msgspec.msgpack.decode(schemas.encode(event))
    fields["a_field_of_tomorrow"] = {"deep": [1, {"er": None}]}
    assert schemas.decode(msgspec.msgpack.encode(fields)) == event


@pytest.mark.parametrize("event", examples(), ids=lambda event: type(event).__name__)
def test_a_missing_field_is_its_default_or_named(event: Event) -> None:
    fields = msgspec.msgpack.decode(schemas.encode(event))
    for field in msgspec.structs.fields(event):
        less = {name: value for name, value in fields.items() if name != field.encode_name}
        if field.required:
            with pytest.raises(schemas.UndecodableError, match=f"missing required field `{field.encode_name}`"):
                schemas.decode(msgspec.msgpack.encode(less))
        elif field.name not in ("prompt", "messages"):
            schemas.decode(msgspec.msgpack.encode(less))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"logprobs": schemas.NDArray.of(np.array([0.0, np.nan, 0.0], "f4"))}, "has a log-prob that is not finite"),
        ({"logprobs": schemas.NDArray.of(np.zeros(2, "f4"))}, r"has \(2,\) log-probs for \(3,\) response tokens"),
        ({"logprobs": schemas.NDArray.of(np.zeros(3, "f8"))}, "not u4 or log-probs that are not f4"),
        ({"spans": ()}, "do not cover its response"),
        ({"spans": (schemas.WeightSpan(1, 0),)}, "do not cover its response"),
        ({"spans": (schemas.WeightSpan(0, 0), schemas.WeightSpan(0, 1))}, "do not cover its response"),
        ({"response_ids": schemas.NDArray.of(np.zeros(4, "u4"))}, "log-probs for"),
        ({"prompt_ids": schemas.NDArray.of(np.zeros(4, "u4"))}, "has routes for tokens 0 to 5 of 7"),
    ],
)
def test_a_rollout_that_contradicts_itself_is_refused(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        rollout(**changes)


def test_other_contradictions_are_refused() -> None:
    with pytest.raises(ValueError, match="exactly one of data and blob"):
        schemas.Routes(experts=8, shape=(0, 1, 2), dtype="u1", sentinel=255)
    with pytest.raises(ValueError, match="max_tokens 0"):
        schemas.Sampling(max_tokens=0)
    with pytest.raises(ValueError, match="exactly one of prompt and messages"):
        msgspec.structs.replace(examples()[0], prompt="x")


def test_identities_are_stable() -> None:
    assert schemas.prompt_id("sums", "1+2=") == schemas.prompt_id("sums", "1+2=")
    assert schemas.prompt_id("sums", "1+2=") != schemas.prompt_id("sums", "1+3=")
    assert schemas.rollout_id(schemas.group_id("p", 3), 2) == "p.3.2"
    assert schemas.sampling_seed("p.3.2", 0, 1) != schemas.sampling_seed("p.3.2", 1, 1)
    assert [schemas.partition_of(key, 4) for key in ("p.0", "p.1", "h.0")] == [1, 2, 1]


def test_the_catalogue_names_what_is_allowed() -> None:
    with pytest.raises(ValueError, match="topic 'nope' is not one of prompts, rollouts"):
        schemas.topic("nope")
    assert schemas.topic("dead-letters").on("run7") == "run7.dead-letters"
