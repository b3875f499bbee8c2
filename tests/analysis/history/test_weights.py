"""`eachprompt weights`: what was published is listed, and any version of it is a directory that transformers loads."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from kafka import KafkaProducer

from analysis.history.weight_versions import WeightVersions
from deploy.cli.commands.demo import DEMO
from deploy.cli.main import main
from deploy.config.kept import adopt
from deploy.config.run import RunConfig, load
from deploy.local.session import create_run_topics
from schemas import (
    TOPICS,
    Canary,
    CanaryScored,
    NDArray,
    WeightFile,
    WeightsApplied,
    WeightsPublished,
    WeightsRefused,
)
from schemas.events.earlier_forms import AnyWeightsApplied
from streams.blobs.store import BlobStore
from streams.broker import open_broker
from streams.weights import StoredTensor, read_file, state_digest, tensor_digest, write_file
from streams.weights.blocks import to_bf16, to_fp8
from streams.weights.delta import Delta, difference, layout_of
from streams.weights.delta import encode as encode_delta
from streams.weights.tensors import parts
from tests.builders import weights_published

MODEL = Path(__file__).parents[3] / "models" / "tiny-moe"
AsJson = Callable[..., Any]
State = dict[str, StoredTensor]


def trained(state: State, seed: int) -> State:
    """One element in ten moved by one unit in the last place."""
    rng = np.random.default_rng(seed)
    result = {}
    for name, tensor in state.items():
        bits = np.array(tensor.bits)
        bits[rng.random(len(bits)) < 0.1] ^= 1
        result[name] = StoredTensor(tensor.dtype, tensor.shape, bits)
    return result


def digest_of(state: State) -> str:
    return state_digest({name: tensor_digest(each) for name, each in state.items()})


class Run:
    """Versions 1 (full), 2 and 3 (deltas), 6 (full, FP8) of the tiny model on a run's topics and blob store."""

    def __init__(self, config: RunConfig, scratch: Path) -> None:
        self.blobs, self.scratch = BlobStore(config.layout.blob_uri), scratch
        first = read_file(MODEL / "model.safetensors")
        second, third = trained(first, 2), trained(trained(first, 2), 3)
        self.states = {1: first, 2: second, 3: third, 6: to_fp8(trained(third, 6))}
        self.events = [self.full(1, "bf16"), self.delta(2), self.delta(3), self.full(6, "fp8")]

    def full(self, version: int, precision: str) -> WeightsPublished:
        files = []
        for number, part in enumerate(parts(self.states[version], 500_000)):
            path = self.scratch / f"{version}-{number}"
            write_file(path, part)
            files.append(WeightFile(name=path.name, blob=self.blobs.put_file(f"weights/{path.name}", path)))
        return self._event(version, precision, files, kind="full")

    def delta(self, version: int) -> WeightsPublished:
        patches = difference(self.states[version - 1], self.states[version])
        assert patches is not None
        base = digest_of(self.states[version - 1])
        data = encode_delta(Delta(version, version - 1, base, patches), layout_of(self.states[version]))
        file = WeightFile(name="d", blob=self.blobs.put(f"weights/d{version}", data))
        return self._event(version, "bf16", [file], kind="delta", base_version=version - 1, base_digest=base)

    def _event(self, version: int, precision: str, files: list[WeightFile], **more: Any) -> WeightsPublished:
        return weights_published(
            version,
            precision=precision,
            files=tuple(files),
            tensors=93,
            time_s=1e9 + version,
            digest=digest_of(self.states[version]),
            canary=CANARY,
            **more,
        )


CANARY = Canary(token_ids=NDArray.of(np.array([[3, 4, 5]], "u4")), logprobs=NDArray.of(np.array([[-1.5, -0.25]], "f4")))
APPLIED = [
    WeightsApplied(producer_id="producer-0", version=1, time_s=1.0),
    WeightsApplied(producer_id="producer-0", version=2, time_s=2.0),
    CanaryScored(
        producer_id="producer-0", version=2, time_s=2.0, logprobs=NDArray.of(np.array([[-1.5, -0.75]], "f4"))
    ),
    WeightsApplied(producer_id="producer-1", version=2, time_s=2.0),
    WeightsRefused(producer_id="producer-1", version=3, time_s=2.0),
    # The earlier form, after a compaction that left each producer its last record.
    AnyWeightsApplied(
        producer_id="producer-2", version=2, time_s=2.0, canary_logprobs=NDArray.of(np.array([[-1.0, -0.25]], "f4"))
    ),
    AnyWeightsApplied(producer_id="producer-3", version=1, time_s=2.0, refused=3),
]  # fmt: skip


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunConfig]:
    directory = tmp_path_factory.mktemp("weights") / "run"
    config = load(DEMO, directory=directory, overrides=["broker.kind=embedded"])
    adopt(config)
    with open_broker(config.broker.build(), directory) as broker:
        create_run_topics(config, broker.bootstrap)
        yield config


@pytest.fixture(scope="module")
def run(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Run:
    from streams.broker import running_broker

    made = Run(config, tmp_path_factory.mktemp("scratch"))
    with running_broker(config.broker.build(), config.directory, 30.0) as bootstrap:
        producer = KafkaProducer(bootstrap_servers=bootstrap)
        for topic, events in (("weights", made.events), ("applied", APPLIED)):
            for event in events:
                producer.send(TOPICS[topic].on(config.run.id), msgspec.msgpack.encode(event), key=b"k").get(timeout=10)
        producer.close()
    return made


@pytest.fixture
def as_json(config: RunConfig, run: Run, capsys: pytest.CaptureFixture[str]) -> AsJson:
    def ask(*arguments: str, code: int = 0) -> Any:
        capsys.readouterr()
        assert main(["weights", *arguments, "--dir", str(config.directory), "--json"]) == code
        captured = capsys.readouterr()
        return json.loads(captured.out) if captured.out else captured.err

    return ask


def test_every_version_is_listed_with_its_drift_and_who_applied_it(as_json: AsJson) -> None:
    listed = as_json("list")["weights"]
    assert [(row["version"], row["kind"], row["base_version"]) for row in listed] == [
        (1, "full", None), (2, "delta", 1), (3, "delta", 2), (6, "full", None),
    ]  # fmt: skip
    assert [row["applied_by"] for row in listed] == [
        ["producer-0", "producer-3"],
        ["producer-0", "producer-1", "producer-2"],
        [],
        [],
    ]
    assert [row["canary_drift"] for row in listed] == [None, 0.25, None, None]
    assert listed[1]["bytes"] < listed[0]["bytes"] / 2


def test_one_version_is_shown_with_what_it_is_made_of(as_json: AsJson, run: Run) -> None:
    shown = as_json("show", "--version", "3")
    assert shown["made_of"] == [1, 2, 3] and shown["digest"] == run.events[2].digest
    assert shown["files"][0]["digest"] == run.events[2].files[0].blob.digest


def test_a_version_that_is_not_there_and_a_place_that_is(as_json: AsJson, tmp_path: Path) -> None:
    line = as_json("export", "--version", "4", "--out", str(tmp_path / "x"), code=1)
    assert "weights 4 are not published in run demo; there are 1 to 3, 6" in line
    assert "allowed: a number, or newest" in as_json("show", "--version", "two", code=2)
    assert "is there already" in as_json("export", "--version", "3", "--out", str(tmp_path), code=2)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_of_an_export_that_fails(run: Run, config: RunConfig, tmp_path: Path) -> None:
    from analysis.errors import AnalysisError
    from analysis.history.export import export

    published = WeightVersions({event.version: event for event in run.events if event.version != 2})
    with pytest.raises(AnalysisError, match=r"weights 3 are a delta, and weights 2 .* there are 1, 3, 6"):
        export(published, 3, MODEL, run.blobs, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("version", [1, 3, 6])
def test_an_export_loads_with_transformers_as_it_is(as_json: AsJson, run: Run, tmp_path: Path, version: int) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    exported = as_json("export", "--version", str(version), "--out", str(tmp_path / "out"))
    assert exported["made_of"] == {1: [1], 3: [1, 2, 3], 6: [6]}[version]
    assert {"config.json", "tokenizer.json", "generation_config.json"} <= set(exported["files"])
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and model.dtype == torch.bfloat16
    assert model.generation_config.eos_token_id == 1
    assert AutoTokenizer.from_pretrained(tmp_path / "out").encode("1+2=") == AutoTokenizer.from_pretrained(
        MODEL
    ).encode("1+2=")
    wanted = to_bf16(run.states[version])
    written = {n: t for path in (tmp_path / "out").glob("*.safetensors") for n, t in read_file(path).items()}
    assert written.keys() == wanted.keys()
    assert all(np.array_equal(written[name].bits, tensor.bits) for name, tensor in wanted.items())
    # What is loaded is what was written: one matrix that transformers keeps under its own name.
    name = "model.layers.0.self_attn.q_proj.weight"
    loaded = dict(model.named_parameters())[name].detach().view(torch.uint16).numpy().reshape(-1)
    assert np.array_equal(loaded, wanted[name].bits)


def test_an_export_has_the_prediction_heads_of_the_model_directory(run: Run, tmp_path: Path) -> None:
    """A publication is without them; an export without them would not be what its configuration says."""
    from analysis.history.export import export

    model = tmp_path / "model"
    shutil.copytree(MODEL, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 1}))
    layers = config["num_hidden_layers"]
    head = {f"model.layers.{layers}.eh_proj.weight": StoredTensor("BF16", (2, 4), np.arange(8, dtype=np.uint16))}
    write_file(model / "model-heads.safetensors", head)
    versions = WeightVersions({event.version: event for event in run.events})
    names = export(versions, 3, model, run.blobs, tmp_path / "out")
    written = {n: t for path in (tmp_path / "out").glob("*.safetensors") for n, t in read_file(path).items()}
    assert written.keys() == run.states[3].keys() | head.keys()
    for name, tensor in (run.states[3] | head).items():
        assert np.array_equal(written[name].bits, tensor.bits), name
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == written.keys()
    assert {"config.json", "README.md", *index["weight_map"].values()} <= set(names)
    readme = (tmp_path / "out" / "README.md").read_text()
    assert f"weights 3\n\nTrained by eachprompt for {versions.events[3].parent_step} steps" in readme
    assert readme != (MODEL / "README.md").read_text()
