"""The canary with a real engine: silent while both sides hold the same weights, loud for the known trap and damage."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import pytest_asyncio
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from analysis.history.export import export
from analysis.history.weight_versions import WeightVersions
from learner.model.policy import Policy, load_model
from learner.settings import LearnerSettings, PublishSettings
from learner.weights import Wire
from learner.weights.canary import CanaryWatch, Chosen, bound_of, compare, score
from producers.rollouts.engine.engine import RolloutEngine
from producers.rollouts.engine.errors import EngineDied
from producers.rollouts.engine.settings import EngineSettings
from producers.rollouts.engine.weight_files import WeightFile
from producers.rollouts.weights.canary import scores
from schemas import Canary, CanaryScored, NDArray, Sampling
from streams.blobs.digests import digest_of
from streams.blobs.store import BlobStore
from tests.builders import publication_of, record_at, weights_published

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(280),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("default"),
]

MODEL = Path(__file__).parents[4] / "models" / "tiny-moe"
WEIGHTS = MODEL / "model.safetensors"
ROLLOUTS = (
    "6+4+7+4=6+4=10,10+7=17,17+4=21",
    "2+7+9+3=2+7=9,9+9=18,18+3=21",
    "7+3+9+8=7+3=10,10+9=19,19+8=27",
    "9+6+9+1=9+6=15,15+9=24,24+1=25",
)
RECORD = record_at("applied")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as `eachprompt weights export` writes it: version 2, of an anchor and a delta, in two files."""
    directory = tmp_path_factory.mktemp("exported")
    blobs = BlobStore((directory / "blobs").as_uri())
    wire, events = Wire(PublishSettings(kind="delta"), 2_000_000), {}
    before = {name: tensor * 2 for name, tensor in load_file(WEIGHTS).items()}
    for version, tensors in ((1, before), (2, load_file(WEIGHTS))):
        (directory / str(version)).mkdir()
        made = wire.write(tensors, version, directory / str(version))
        events[version] = publication_of(made, blobs)
    assert [event.kind for event in events.values()] == ["full", "delta"]
    names = export(WeightVersions(events), 2, MODEL, blobs, directory / "out")
    assert sum(name.endswith(".safetensors") for name in names) == 2
    return directory / "out"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(exported: Path) -> AsyncIterator[RolloutEngine]:
    """Weights and KV cache in FP8, which round most; its reload can be spoilt, and vLLM's own interface is open.

    It starts on an exported directory: what vLLM makes of that is what the first test compares.
    """
    extra = {
        "worker_extension_cls": "tests.producers.rollouts.faulty_reload.FaultyReloadExtension",
        "weight_transfer_config": {"backend": "eachprompt"},
    }
    settings = EngineSettings(model=str(exported), precision="fp8", max_model_len=128, max_num_seqs=16, extra=extra)
    started = RolloutEngine(settings)
    await started.start()
    yield started
    await started.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def canary(engine: RolloutEngine) -> Canary:
    """What the learner's float32 weights say of four of the model's own rollouts, and how the engine rounds them."""
    encode = AutoTokenizer.from_pretrained(MODEL).encode
    chosen = []
    for text in ROLLOUTS:
        prompt = len(encode(text[: text.index("=") + 1]))
        ids = encode(text)
        judged = [number >= prompt - 1 for number in range(len(ids) - 1)]
        chosen.append(Chosen(tokens=ids, judged=judged, engine=None))
    settings = LearnerSettings(model=str(MODEL))
    found = score(Policy(load_model(MODEL, settings), settings.chunk_tokens), chosen, torch.device("cpu"))
    drift = compare(found, await scores(engine, found, "rounding"), 0, "p")
    return msgspec.structs.replace(found, rounding=drift.mean)


async def alarms(engine: RolloutEngine, canary: Canary, name: str) -> tuple[int, dict[str, float]]:
    """What the learner makes of the engine's scores, through the events that carry them."""
    gauges: dict[str, float] = {}
    watch = CanaryWatch(None, gauges.__setitem__, lambda version: None)
    logprobs = await scores(engine, canary, name)
    published = weights_published(1, canary=canary)
    # The topics are read side by side: the producer's scores may come first.
    scored = CanaryScored(producer_id="p", version=1, time_s=0.0, logprobs=logprobs)
    watch.on_event(scored, RECORD)
    watch.on_event(published, RECORD)
    print({name: round(value, 4) for name, value in gauges.items()})
    return watch.alarms, gauges


async def test_it_is_silent_at_the_start_and_after_an_update(engine: RolloutEngine, canary: Canary) -> None:
    assert (await alarms(engine, canary, "start"))[0] == 0
    await engine.update_weights(1, [WeightFile(WEIGHTS)])
    count, gauges = await alarms(engine, canary, "updated")
    assert count == 0
    assert 0 < gauges["canary_drift_p"] < gauges["canary_bound"] / 3


async def test_a_reload_without_the_expert_fix_is_an_alarm(engine: RolloutEngine, canary: Canary) -> None:
    await engine._llm.collective_rpc("break_reload")
    await engine.update_weights(2, [WeightFile(WEIGHTS)])
    count, gauges = await alarms(engine, canary, "unpacked")
    await engine._llm.collective_rpc("repair_reload")
    await engine.update_weights(3, [WeightFile(WEIGHTS)])
    assert count == 1 and gauges["canary_drift_p"] > 10 * gauges["canary_bound"]
    assert (await alarms(engine, canary, "packed"))[0] == 0


async def test_one_spoilt_matrix_is_an_alarm(engine: RolloutEngine, canary: Canary, tmp_path: Path) -> None:
    tensors = load_file(WEIGHTS)
    tensors["model.layers.1.self_attn.o_proj.weight"] *= -1
    save_file(tensors, tmp_path / "spoilt.safetensors", {"format": "pt"})
    await engine.update_weights(4, [WeightFile(tmp_path / "spoilt.safetensors")])
    count, gauges = await alarms(engine, canary, "spoilt")
    await engine.update_weights(5, [WeightFile(WEIGHTS)])
    assert count == 1 and gauges["canary_drift_p"] > 10 * gauges["canary_bound"]


async def test_a_layer_with_the_weights_of_another_is_an_alarm(
    engine: RolloutEngine, canary: Canary, tmp_path: Path
) -> None:
    tensors = load_file(WEIGHTS)
    own, other = "model.layers.1.", "model.layers.0."
    mixed = {name: tensors[name.replace(own, other)].clone() for name in tensors}
    save_file(mixed, tmp_path / "mixed.safetensors", {"format": "pt"})
    await engine.update_weights(6, [WeightFile(tmp_path / "mixed.safetensors")])
    count, gauges = await alarms(engine, canary, "mixed")
    await engine.update_weights(7, [WeightFile(WEIGHTS)])
    assert count == 1 and gauges["canary_drift_p"] > 10 * gauges["canary_bound"]


async def test_it_does_not_wait_behind_the_rollouts(engine: RolloutEngine, canary: Canary) -> None:
    """Sixteen places, far more requests: the set is scored long before those that came before it are done."""
    many = [
        asyncio.create_task(engine.generate([5, 11, 4], Sampling(max_tokens=100), f"many-{n}", ignore_eos=True))
        for n in range(160)
    ]
    while not any(task.done() for task in many):
        await asyncio.sleep(0.01)
    logprobs = await scores(engine, canary, "crowded")
    waiting = sum(not task.done() for task in many)
    await asyncio.gather(*many)
    drift = compare(canary, logprobs, 1, "p")
    print(f"{waiting} of {len(many)} rollouts were not done; drift in the crowd {drift.mean:.4f}")
    assert waiting > len(many) / 2 and drift.mean < bound_of(canary, None) / 2


async def test_vllms_own_interface_loads_the_published_files(
    engine: RolloutEngine, canary: Canary, tmp_path: Path
) -> None:
    other = tmp_path / "negated.safetensors"
    tensors = load_file(WEIGHTS)
    tensors["lm_head.weight"] *= -1
    save_file(tensors, other, {"format": "pt"})
    before = (await scores(engine, canary, "before")).numpy()
    rpc: Any = engine._llm.collective_rpc
    digest = digest_of(WEIGHTS.read_bytes())
    await rpc("init_weight_transfer_engine", args=({},))
    for path, kept in ((other, False), (WEIGHTS, True)):
        await rpc("start_weight_update")
        await rpc("update_weights", args=({"files": [(str(path), digest if kept else None)], "round_fp8": True},))
        await rpc("finish_weight_update")
        after = (await scores(engine, canary, f"after-{kept}")).numpy()
        assert (before == after).all() == kept


async def test_a_reload_that_loads_nothing_ends_the_engine(engine: RolloutEngine, tmp_path: Path) -> None:
    """One step moves log-probs by less than rounding: that a version was not loaded is read from the weights."""
    tensors = load_file(WEIGHTS)
    tensors["model.layers.2.input_layernorm.weight"] *= 1.01
    save_file(tensors, tmp_path / "next.safetensors", {"format": "pt"})
    await engine.update_weights(8, [WeightFile(tmp_path / "next.safetensors")])
    await engine._llm.collective_rpc("skip_reload")
    await engine.update_weights(9, [WeightFile(tmp_path / "next.safetensors")])
    with pytest.raises(EngineDied, match=r"does not hold 1 of the .* model\.layers\.2\.input_layernorm\.weight among"):
        await engine.update_weights(10, [WeightFile(WEIGHTS)])


async def test_a_word_that_is_no_log_prob_is_an_infinite_drift() -> None:
    own = Canary(token_ids=NDArray.of(np.array([[1, 2, 3]], "u4")), logprobs=NDArray.of(np.array([[-1.0, -2.0]], "f4")))
    for said in (np.array([[-1.0]], "f4"), np.array([[-1.0, np.nan]], "f4")):
        assert compare(own, NDArray.of(said), 1, "p").mean == float("inf")
    assert compare(own, NDArray.of(np.array([[-1.5, -2.0]], "f4")), 1, "p").mean == 0.25
