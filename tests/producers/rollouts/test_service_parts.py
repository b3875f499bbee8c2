"""The producer's parts that need no engine: tokens, the event, the claim check, what a predecessor wrote."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from producers.rollouts.already_written import AlreadyWritten
from producers.rollouts.engine.errors import in_one_line
from producers.rollouts.engine.generation import Generation
from producers.rollouts.event import completed, is_finite, routes_on_wire
from producers.rollouts.model_facts import engine_info, experts_of
from producers.rollouts.prompt_encoder import PromptEncoder
from producers.rollouts.settings import ProducerSettings
from schemas import EngineInfo, GroupRequested, Message, Ref, RolloutCompleted, Sampling, WeightSpan, decode, encode
from streams.blobs.store import BlobStore
from streams.errors import ConfigurationError, Poison
from streams.record import Output
from tests.builders import group_requested, record_at

MODEL = Path(__file__).parents[3] / "models" / "tiny-moe"
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'bad' %}{{ raise_exception('no such role') }}{% endif %}"
    "{{ m.content }}+{% endfor %}1="
)


def request(group: str = "g.0", samples: int = 4) -> GroupRequested:
    return group_requested(
        group,
        prompt_id="g",
        samples=samples,
        sampling=Sampling(max_tokens=64),
        reference="3",
        time_s=1.0,
        deadline_s=1e10,
        prompt="1+2=",
    )


def generation(tokens: int = 3, prompt: int = 4, layers: int = 3, dtype: type = np.uint8) -> Generation:
    return Generation(
        response_ids=np.arange(tokens, dtype=np.uint32),
        logprobs=np.full(tokens, -0.5, np.float32),
        routes=np.arange((prompt + tokens) * layers * 2).reshape(prompt + tokens, layers, 2).astype(dtype),
        spans=(WeightSpan(0, 1), WeightSpan(2, 2)),
        finish_reason="stop",
        started_s=1.0,
        first_token_s=2.0,
        finished_s=3.0,
    )


def event(group: str, index: int) -> RolloutCompleted:
    return completed(
        request(group), Ref("prompts", 0, 0), generation(), index=index, attempt=0,
        prompt_ids=np.arange(4, dtype=np.uint32), routes=None, producer_id="producer-0",
        engine=EngineInfo(name="vllm", version="0", model="m"), received_s=1.0, now_s=4.0,
    )  # fmt: skip


def test_text_becomes_the_models_tokens() -> None:
    encoder = PromptEncoder(MODEL)
    ids = encoder.encode("3+1=", None)
    vocabulary = json.loads((MODEL / "tokenizer.json").read_text())["model"]["vocab"]
    assert ids.dtype == np.uint32 and ids.tolist() == [vocabulary[c] for c in "3+1="]
    with pytest.raises(Poison, match="no tokens"):
        encoder.encode("", None)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_messages_go_through_the_chat_template(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(MODEL, model)
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": TEMPLATE}))
    encoder = PromptEncoder(model)
    messages = (Message(role="user", content="2"), Message(role="user", content="3"))
    assert encoder.encode(None, messages).tolist() == encoder.encode("2+3+1=", None).tolist()
    with pytest.raises(Poison, match="no such role"):
        encoder.encode(None, (Message(role="bad", content="2"),))


def test_without_a_chat_template_messages_are_poison() -> None:
    with pytest.raises(Poison, match="no chat template"):
        PromptEncoder(MODEL).encode(None, (Message(role="user", content="2"),))


def test_a_directory_without_tokenizer_or_experts_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no tokenizer\.json"):
        PromptEncoder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigurationError, match="is no tokenizer"):
        PromptEncoder(tmp_path)
    with pytest.raises(ConfigurationError, match=r"no readable config\.json"):
        experts_of(tmp_path)
    (tmp_path / "config.json").write_text('{"hidden_size": 3}')
    with pytest.raises(ConfigurationError, match="no mixture-of-experts model"):
        experts_of(tmp_path)
    with pytest.raises(ConfigurationError, match="safetensors"):
        ProducerSettings(model=str(tmp_path)).engine_settings(0)


def test_the_model_tells_its_experts_and_the_engine_its_precisions() -> None:
    assert experts_of(MODEL) == 8
    info = engine_info(ProducerSettings(model=str(MODEL), precision="fp8"))
    assert (info.name, info.model, info.weights, info.kv_cache, info.device) == (
        "vllm",
        "tiny-moe",
        "fp8",
        "fp8",
        "cpu",
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
async def test_a_rollout_survives_the_log_with_routes_inline_or_as_claim_check(tmp_path: Path, dtype: type) -> None:
    blobs = BlobStore((tmp_path / "blobs").as_uri())
    made = generation(dtype=dtype)
    assert made.routes is not None
    for limit, inline in ((made.routes.nbytes, True), (made.routes.nbytes - 1, False)):
        routes = await routes_on_wire("g.0.2", made.routes, 8, blobs, limit)
        sent = completed(
            request(), Ref("prompts", 1, 7), made, index=2, attempt=1, prompt_ids=np.arange(4, dtype=np.uint32),
            routes=routes, producer_id="producer-0", engine=EngineInfo(name="vllm", version="0", model="m"),
            received_s=1.0, now_s=4.0,
        )  # fmt: skip
        got = decode(encode(sent))
        assert (
            isinstance(got, RolloutCompleted) and got.routes is not None and got.routes.sentinel == np.iinfo(dtype).max
        )
        assert (got.rollout_id, got.attempt, got.request, got.spans) == ("g.0.2", 1, Ref("prompts", 1, 7), made.spans)
        assert got.response_ids.numpy().tolist() == [0, 1, 2] and got.timings.first_token_s == 2.0
        if inline:
            assert got.routes.data is not None
            data = got.routes.data.numpy()
        else:
            assert got.routes.blob is not None and "routes/g.0.2" in got.routes.blob.uri
            data = np.frombuffer(blobs.get(got.routes.blob), dtype).reshape(got.routes.shape)
        assert np.array_equal(data, made.routes)


def test_log_probs_that_are_not_finite_are_noticed() -> None:
    made = generation()
    assert is_finite(made)
    made.logprobs[1] = -np.inf
    assert not is_finite(made)


def test_building_and_encoding_a_rollout_is_cheap() -> None:
    """170 rollouts a second must leave the event loop nearly idle: 18 response tokens, 3 layers, top 2."""
    encode(event("g.0", 0))
    count, began = 500, time.thread_time()
    for index in range(count):
        encode(event("g.0", index))
    took_us = (time.thread_time() - began) / count * 1e6
    print(f"build and encode a rollout: {took_us:.0f} µs")
    assert took_us < 1000


async def test_what_a_predecessor_wrote_is_not_generated_again(run: Any) -> None:
    started_s = time.time() + 1
    await run.write(*(Output("rollouts", event(f"g.{i % 2}", i), key=f"g.{i % 2}") for i in range(5)))
    old = record_at("prompts", 0, time_s=time.time())
    resumed = AlreadyWritten(run.context, started_s)
    assert await resumed.written(request("g.0"), old) == {0, 2, 4}
    assert await resumed.written(request("g.1"), old) == {1, 3}
    assert await resumed.written(request("g.7"), old) == set()
    new = record_at("prompts", 9, time_s=started_s)
    assert await resumed.written(request("g.0"), new) == set(), (
        "a request made after the start was never in flight before"
    )


def test_what_vllm_says_is_one_line() -> None:
    """pydantic's error as vLLM raises it: its last line is an address, and services are asked for their last line."""
    said = (
        "1 validation error for ModelConfig\n"
        "  Value error, max_model_len (1024) is greater than 256. [type=value_error]\n"
        "    For further information visit https://errors.pydantic.dev/2.14/v/value_error"
    )
    one = "1 validation error for ModelConfig Value error, max_model_len (1024) is greater than 256. [type=value_error]"
    assert in_one_line(ValueError(said)) == one
