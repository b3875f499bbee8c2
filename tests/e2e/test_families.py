"""Each family beside the demo's own through the whole service, with real vLLM: routes recorded, replayed in training,
weights published under the names that vLLM loads, applied, scored by the canary, and exported.

Rewards are the repetition penalty's: models of random weights solve nothing, and repeat themselves more or less.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from analysis.history.weight_versions import WeightVersions, read_weight_versions
from deploy.cli.main import main
from deploy.config.run import load
from deploy.local.open_log import run_log
from learner.router_replay import moe_routers, recorded
from learner.weights.canary import bound_of
from producers.rollouts.engine.engine import RolloutEngine
from producers.rollouts.engine.settings import EngineSettings
from producers.rollouts.engine.weight_files import WeightFile
from schemas import RolloutCompleted
from tests.e2e.families import FAMILIES, HEAD, build

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(420),
    # vLLM's, torch's and pyzmq's own, as in test_engine.
    pytest.mark.filterwarnings("default"),
]

STEPS: Final = 2
SETTINGS: Final = (
    # Large enough that weights which were not applied would be seen by the canary.
    "learner.optimizer.learning_rate=3e-3",
    "learner.schedule.warmup_steps=0",
    "rewards.repetition.weight=1.0",
    "rewards.repetition.ngram_tokens=2",
    "run.groups_per_batch=2",
    "run.group_size=4",
    "dispatcher.sampling={ max_tokens = 24 }",
    "dispatcher.evaluate_samples=1",
    "producer.kv_cache_dtype=auto",
)
HELD_BACK: Final = Path(__file__).parents[2] / "models" / "running-sums" / "held_back.jsonl"
AGREE: Final = 0.75
"""Share of a layer's tokens that the engine in bfloat16 and the trainer in float32 must route alike."""


@dataclass(frozen=True)
class Ran:
    """A finished run of one family, and what its log says."""

    family: str
    model: Path
    directory: Path
    summary: dict[str, Any]
    published: WeightVersions
    rollouts: list[RolloutCompleted]

    @property
    def scored(self) -> int:
        """The newest version that the producer's canary scored."""
        return max(version for version in self.published.events if self.published.drift(version) is not None)


@pytest.fixture(
    scope="module",
    params=["deepseek_v3", *(pytest.param(name, marks=pytest.mark.chaos) for name in ("mixtral", "olmoe"))],
)
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    family = request.param
    assert family in FAMILIES
    scratch = tmp_path_factory.mktemp(family)
    model, directory = scratch / "model", scratch / "run"
    build(family, model)
    held_back = scratch / "held_back.jsonl"
    held_back.write_text("".join(HELD_BACK.read_text().splitlines(keepends=True)[:16]))
    command = [sys.executable, "-P", "-m", "deploy.cli.main", "demo", "--broker", "embedded", "--dir", str(directory)]
    command += ["--steps", str(STEPS), "--json", "--deadline", "380", "--set", f"model.path={model}"]
    command += ["--set", f"held_back.path={held_back}"]
    for value in SETTINGS:
        command += ["--set", value]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert finished.returncode == 0, finished.stderr[-4000:]
    summary = json.loads(finished.stdout.strip().splitlines()[-1])
    with run_log(load(None, directory=directory)) as log:
        published = read_weight_versions(log)
        rollouts = [event for event, _ in log.events("rollouts") if isinstance(event, RolloutCompleted)]
    yield Ran(family, model, directory, summary, published, rollouts)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def exported(ran: Ran) -> Path:
    """The newest version that was scored, as `eachprompt weights export` writes it."""
    out = ran.directory / "exported"
    arguments = ["weights", "export", "--version", str(ran.scored), "--out", str(out), "--dir", str(ran.directory)]
    assert main(arguments) == 0
    return out


def files_of(directory: Path) -> list[WeightFile]:
    return [WeightFile(path) for path in sorted(directory.glob("*.safetensors"))]


def loaded(directory: Path) -> Any:
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["mismatched_keys"]
    assert all(name.startswith(HEAD) for name in info["unexpected_keys"]), info["unexpected_keys"]
    return model.eval()


def canary_of(model: Any, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    tokens = torch.from_numpy(ids.astype(np.int64))
    with torch.no_grad():
        logp = model(tokens, use_cache=False).logits[:, :-1].log_softmax(-1)
    said: np.ndarray[Any, Any] = logp.gather(2, tokens[:, 1:, None])[..., 0].numpy()
    return said


def test_it_trains_with_replay_and_every_rollout_is_accounted_for(ran: Ran) -> None:
    audit = ran.summary["audit"]
    assert ran.summary["steps"] == STEPS
    assert (audit["unaccounted"], audit["trained_twice"]) == (0, 0) and audit["dispositions"]["trained"] > 0, audit
    replay = ran.summary["replay"]
    assert replay["k3_on"] is not None and replay["k3_off"] is not None and 0 <= replay["flip_share"] < 0.9, replay


def test_the_engine_and_the_trainer_route_the_same_tokens_alike(ran: Ran) -> None:
    model = loaded(ran.model)
    layers = len(moe_routers(model))
    assert layers == (2 if ran.family == "deepseek_v3" else 3)
    first = [each for each in ran.rollouts if [span.version for span in each.spans] == [0] and each.routes is not None]
    assert len(first) > 8
    alike, shifted = [], []
    for rollout in first[:24]:
        assert rollout.routes is not None and rollout.routes.data is not None and rollout.routes.experts == 8
        ids = np.concatenate([rollout.prompt_ids.numpy(), rollout.response_ids.numpy()]).astype(np.int64)
        assert rollout.routes.shape == (len(ids), layers, 2)
        with recorded(model) as record, torch.no_grad():
            model(torch.from_numpy(ids)[None], use_cache=False)
        # No forward pass has seen the last token.
        theirs = np.sort(rollout.routes.data.numpy()[:-1].astype(np.int64), -1)
        mine = np.sort(record.routes.numpy()[:-1], -1)
        alike.append((mine == theirs).all(-1))
        shifted.append((mine == np.roll(theirs, 1, axis=1)).all(-1))
    by_layer = np.concatenate(alike).mean(0)
    print(ran.family, "routed alike by layer", by_layer, "in another layer's place", np.concatenate(shifted).mean(0))
    assert (by_layer > AGREE).all(), by_layer
    assert (np.concatenate(shifted).mean(0) < 0.5).all()


def test_weights_are_applied_and_the_canary_agrees(ran: Ran) -> None:
    assert max(ran.published.events) == STEPS and 1 <= ran.scored <= STEPS
    drift, canary = ran.published.drift(ran.scored), ran.published.events[ran.scored].canary
    assert canary is not None and canary.rounding is not None, "the first batch is of version 0"
    assert drift is not None and drift < bound_of(canary, None)
    # It would not agree if the engine still had the weights that it was started with.
    judged = canary.compared()
    moved = np.abs(canary.logprobs.numpy() - canary_of(loaded(ran.model), canary.token_ids.numpy()))[judged].mean()
    print(ran.family, "version", ran.scored, "drift", drift, "moved", moved)
    assert moved > 10 * drift


def test_the_export_is_what_was_trained_and_loads_with_transformers(ran: Ran, exported: Path) -> None:
    canary = ran.published.events[ran.scored].canary
    assert canary is not None
    said = canary_of(loaded(exported), canary.token_ids.numpy())
    # The learner scores its float32 weights in the precision that it computes with; the export is rounded to bfloat16.
    assert np.abs(said - canary.logprobs.numpy())[canary.compared()].mean() < 0.05
    before = load_file(ran.model / "model.safetensors")
    after = {name: tensor for path in exported.glob("*.safetensors") for name, tensor in load_file(path).items()}
    assert after.keys() == before.keys()
    heads = {name for name in after if name.startswith(HEAD)}
    assert bool(heads) == (ran.family == "deepseek_v3")
    moved, experts = set(), set()
    for name, tensor in after.items():
        assert (tensor.dtype, tensor.shape) == (before[name].dtype, before[name].shape), name
        moved |= set() if torch.equal(tensor, before[name]) else {name}
        experts |= {name} if ".experts." in name and name not in heads else set()
    still = heads | {name for name in after if name.endswith("e_score_correction_bias")}
    # An expert that no token of these few batches has chosen has not moved.
    assert not moved & still and after.keys() - still - experts <= moved
    assert len(moved & experts) > 0.75 * len(experts)


def test_what_is_generated_after_an_update_is_of_the_weights_that_were_applied(ran: Ran, exported: Path) -> None:
    """The canary sees prompts alone: latent attention decodes with other products of its weights than it prefills with,
    and those are made anew after a reload or forgotten."""
    model, start = loaded(exported), loaded(ran.model)
    late = [each for each in ran.rollouts if [span.version for span in each.spans] == [ran.scored]]
    assert len(late) > 4
    off, moved = [], []
    for rollout in late[:16]:
        ids = np.concatenate([rollout.prompt_ids.numpy(), rollout.response_ids.numpy()])
        response = len(rollout.response_ids.numpy())
        off.append(np.abs(canary_of(model, ids[None])[0, -response:] - rollout.logprobs.numpy()))
        moved.append(np.abs(canary_of(start, ids[None])[0, -response:] - rollout.logprobs.numpy()))
    mean, without = float(np.concatenate(off).mean()), float(np.concatenate(moved).mean())
    print(ran.family, "generated by version", ran.scored, "off", mean, "off the weights of the start", without)
    assert mean < 0.1 and without > 5 * mean


@pytest.mark.chaos
async def test_an_updated_engine_is_a_fresh_one_on_the_export(ran: Ran, exported: Path) -> None:
    """To the last bit; also what vLLM makes of the export as it is. Experts left unpacked would be nats away."""
    canary = ran.published.events[ran.scored].canary
    assert canary is not None
    scores = {}
    for name, model in (("updated", ran.model), ("fresh", exported)):
        engine = RolloutEngine(EngineSettings(model=str(model), max_model_len=128, kv_cache_dtype="auto"))
        await engine.start()
        try:
            if name == "updated":
                await engine.update_weights(ran.scored, files_of(exported))
            scores[name] = np.concatenate([await engine.score(row) for row in canary.rows()])
        finally:
            await engine.stop()
    assert np.array_equal(scores["updated"], scores["fresh"])
    scored = [logprobs for (version, _), logprobs in ran.published.scored.items() if version == ran.scored]
    assert scored
    for logp in scored:
        # The producer scored them in one batch with rollouts, which rounds otherwise.
        own = np.concatenate([row[: len(ids) - 1] for row, ids in zip(logp.numpy(), canary.rows(), strict=True)])
        print(ran.family, "the service's engine against a fresh one", np.abs(scores["fresh"] - own).mean())
        assert np.abs(scores["fresh"] - own).mean() < 0.05
