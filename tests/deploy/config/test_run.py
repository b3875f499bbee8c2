"""Configuration files as users write them, right and wrong."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from deploy.cli.commands.demo import DEMO
from deploy.config.kept import adopt
from deploy.config.preflight import check, check_model, check_trainable
from deploy.config.run import RunConfig, load
from deploy.config.shared import HANDED_ON
from deploy.errors import ConfigError
from deploy.services import settings_class
from learner.settings import SUPPORTED
from schemas.services import SERVICES
from streams.errors import ConfigurationError

OWN_RUN = """
[run]
steps = 100
groups_per_batch = 8
samples = 6
max_staleness = 2

[model]
path = "model"

[prompts]
path = "prompts.jsonl"

[held_back]
path = "held_back.jsonl"

[dispatcher]
sampling = { max_tokens = 32 }

[learner]
learning_rate = 1e-4
"""


def write_run(directory: Path, text: str = OWN_RUN) -> Path:
    """A user's own run: configuration, model directory and prompts."""
    path = directory / "mine.toml"
    path.write_text(text)
    write_model(directory / "model")
    row = {"verifier": "exact_match", "reference": "2"}
    (directory / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": f"{n}+1=", **row}) for n in range(5)))
    (directory / "held_back.jsonl").write_text(json.dumps({"prompt": "9+9=", **row}))
    return path


def write_model(directory: Path, model_type: str = "qwen3_moe") -> None:
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({"model_type": model_type}))
    (directory / "model.safetensors").write_bytes(b"")
    shutil.copy(Path(load(DEMO).model.path) / "tokenizer.json", directory)


def test_twenty_lines_make_a_run(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    assert len([line for line in OWN_RUN.splitlines() if line.strip()]) <= 20
    config = load(path, directory=tmp_path / "run")
    assert config.run.id == "mine"
    assert check(config) == 1
    assert config.service("learner").optimizer.learning_rate == 1e-4


def test_facts_that_are_given_once_reach_every_service(tmp_path: Path) -> None:
    config = load(write_run(tmp_path), overrides=["run.ranks=3"])
    dispatcher, batches, learner = (config.service(name) for name in ("dispatcher", "batches", "learner"))
    assert dispatcher.samples == 6
    assert dispatcher.groups_per_batch == batches.groups_per_batch == 8
    assert dispatcher.max_staleness == batches.max_staleness == 2
    assert dispatcher.max_steps == learner.max_steps == batches.max_batches == 100
    assert batches.ranks == learner.ranks == 3
    assert config.replicas_of("learner") == 3
    model = str(tmp_path / "model")
    assert {config.service(name).model for name in ("producer", "rewards", "batches", "learner")} == {model}
    assert dispatcher.source.path == str(tmp_path / "prompts.jsonl")


def test_no_steps_means_without_end(tmp_path: Path) -> None:
    config = load(write_run(tmp_path), overrides=["run.steps=0"])
    assert config.service("learner").max_steps is None


@pytest.mark.parametrize("source", HANDED_ON)
def test_what_is_handed_on_has_a_place(source: str) -> None:
    for target in HANDED_ON[source]:
        service, _, field = target.partition(".")
        assert field in settings_class(service).__struct_fields__


@pytest.mark.parametrize("own", [True, False], ids=["own", "demo"])
def test_the_resolved_configuration_reads_back_as_itself(tmp_path: Path, own: bool) -> None:
    config = load(write_run(tmp_path) if own else DEMO, directory=tmp_path / "run", overrides=["run.seed=7"])
    adopt(config)
    again = load(None, directory=tmp_path / "run")
    assert again.resolved() == config.resolved()
    assert again.run == config.run
    for service in SERVICES:
        assert again.service(service) == config.service(service)


def test_paths_are_relative_to_the_file_that_gives_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_run(tmp_path)
    monkeypatch.chdir("/")
    config = load(path, overrides=["model.path=elsewhere"])
    assert config.prompts["path"] == str(tmp_path / "prompts.jsonl")
    assert config.model.path == "/elsewhere"


def test_the_demo_s_configuration_is_complete() -> None:
    config = load(DEMO)
    for service in SERVICES:
        config.service(service)


WRONG = [
    ("run.stesp=3", "run.stesp is 3, but there is no such key; did you mean run.steps?"),
    ("run.steps=-1", "run.steps is -1; allowed: an integer of at least 0"),
    ("run.steps='x'", 'run.steps is "x"; allowed: an integer of at least 0'),
    ("run.partitions=0", "run.partitions is 0; allowed: an integer of at least 1 and up to 1024"),
    ("run.id='a b'", 'run.id is "a b"; allowed: a string that matches ^([A-Za-z0-9][A-Za-z0-9._-]{0,99})?$'),
    (
        "broker.kind=kafak",
        'broker.kind is "kafak"; allowed: "auto" or "embedded" or "external" or "kafka" (did you mean "kafka"?)',
    ),
    ("broker.kind=external", "broker.kind 'external' needs broker.bootstrap_servers, as host:port[,host:port...]"),
    ("supervisor.backoff_max_s=0.1", "supervisor: backoff_max_s is 0.1; allowed: at least backoff_first_s, 0.5"),
    ("batcher.fill=1", "section [batcher] is given, but there is no such section; did you mean [batches]?"),
    ("learner.ranks=4", "learner.ranks is 4, but services share it; allowed: give it as run.ranks"),
    ("batches.model='x'", 'batches.model is "x", but services share it; allowed: give it as model.path'),
    (
        "learner.objective=epso",
        'learner.objective.kind is "epso"; allowed: "espo" or "grpo" or "dapo" or "gspo" or "cispo" or "gmpo" or '
        '"custom" (did you mean "espo"?)',
    ),
    ("dispatcher.sampling.max_tokens=0", "dispatcher.sampling.max_tokens is 0; allowed: an integer of at least 1"),
    ("groups.min_samples=1", "groups.min_samples is 1; allowed: an integer of at least 2"),
    (
        "replicas.groups=5",
        "replicas.groups is 5; allowed: at most run.partitions, which is 4, for an aggregator without a partition has "
        "nothing to read",
    ),
    (
        "run.ranks=100000",
        f"run.ranks is 100000; allowed: at most {max(8, 4 * (os.cpu_count() or 1))}, four for each of this machine's "
        "cores",
    ),
    (
        "learner.max_sequence_tokens=10",
        "learner.max_sequence_tokens is 10; allowed: at least producer.max_model_len, which is 1024, for what is "
        "longer is generated and never trained on",
    ),
    ("prompts.kind=csv", 'prompts.kind is "csv"; allowed: "jsonl" or "reasoning_gym"'),
    ("prompts.pth='x'", 'prompts.pth is "x", but there is no such key; did you mean prompts.path?'),
    ("steps", '--set is "steps"; allowed: section.key=value'),
    ("run.steps=[1", "--set run.steps is [1, which is not a TOML value; allowed: a value as TOML has it"),
]


@pytest.mark.parametrize(("override", "sentence"), WRONG, ids=[override for override, _ in WRONG])
def test_a_wrong_value_is_one_line(tmp_path: Path, override: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(load(write_run(tmp_path), overrides=[override]))
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "[model]\npath='model'\n",
            "section [prompts] is not given; it is needed: what to train on, such as path of a JSONL file",
        ),
        ("[prompts]\npath='p'\n", "model.path is not given; it is needed: a string"),
        ("steps = 3\n", "steps is 3, but stands outside every section; allowed: [section] first"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value) == sentence


def test_what_is_no_toml_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text("[run]\nsteps = = 3\n")
    with pytest.raises(ConfigError, match=r"^configuration .*wrong\.toml is not valid TOML: .*line 2"):
        load(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^configuration .*none\.toml cannot be read: No such file or directory$"):
        load(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match=r"but it holds no run\.toml; allowed: a run directory, or -c FILE.toml"):
        load(None, directory=tmp_path)
    with pytest.raises(ConfigError, match="neither a configuration nor a run directory is given"):
        load(None)


def sentence_of(directory: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        check_model(directory)
    return str(caught.value)


def test_an_engine_is_not_asked_for_more_positions_than_the_model_has(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    model = tmp_path / "model" / "config.json"
    of_model = json.loads(model.read_text())
    model.write_text(json.dumps({**of_model, "max_position_embeddings": 256}))
    check(load(path, overrides=["producer.max_model_len=256"]))
    with pytest.raises(ConfigError) as caught:
        check(load(path))
    expected = "producer.max_model_len is 1024; allowed: at most 256, max_position_embeddings of the model"
    assert str(caught.value) == expected
    model.write_text(json.dumps({**of_model, "max_position_embeddings": 256, "rope_scaling": {"factor": 4.0}}))
    check(load(path))


def test_an_fp8_cache_that_cannot_be_is_refused_before_an_engine_is_started(tmp_path: Path) -> None:
    """It was found out by five engines in five minutes, each of which pointed to the log above."""
    path = write_run(tmp_path)
    model = tmp_path / "model" / "config.json"
    of_model = json.loads(model.read_text())
    model.write_text(json.dumps({**of_model, "head_dim": 16}))
    check(load(path))
    with pytest.raises(ConfigError, match=r'"fp8" with model .* allowed: "auto", or leave it out: its heads have 16'):
        check(load(path, overrides=["producer.kv_cache_dtype=fp8"]))


def test_a_blob_store_that_does_not_answer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^blobs\.uri: blob store 'ftp://127\.0\.0\.1:1/' is no location that"):
        check(load(write_run(tmp_path), overrides=["blobs.uri='ftp://127.0.0.1:1/'"]))


def test_model_directories_that_cannot_be_trained(tmp_path: Path) -> None:
    none = tmp_path / "none"
    assert sentence_of(none) == f'model.path is "{none}", which is no directory; allowed: a Hugging Face model'
    dense = tmp_path / "dense"
    write_model(dense, "qwen3-moe")
    families = ", ".join(SUPPORTED)
    slip = "(did you mean qwen3_moe?)"
    assert sentence_of(dense) == f'model.path is "{dense}" of family "qwen3-moe"; allowed: {families} {slip}'
    (dense / "config.json").write_text("{}")
    assert sentence_of(dense) == f'model.path is "{dense}", whose config.json names no model_type'
    bare = tmp_path / "bare"
    write_model(bare)
    (bare / "model.safetensors").unlink()
    assert "holds no *.safetensors" in sentence_of(bare)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "prompts.jsonl, line 2: "),
        (
            '{"prompt": "x", "verifier": "exact_macth", "reference": "1"}',
            "line 2: verifier 'exact_macth' is not one of",
        ),
    ],
)
def test_a_bad_line_of_prompts_is_found_before_anything_starts(tmp_path: Path, line: str, message: str) -> None:
    path = write_run(tmp_path)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(prompts.read_text().splitlines()[0] + "\n" + line + "\n")
    config: RunConfig = load(path)
    with pytest.raises(ConfigurationError) as caught:
        check(config)
    assert message in str(caught.value)


def test_dispatcher_without_held_back_prompts_has_no_rounds(tmp_path: Path) -> None:
    text = OWN_RUN.replace('[held_back]\npath = "held_back.jsonl"\n', "")
    config = load(write_run(tmp_path, text))
    assert check(config) == 0
    settings: Any = config.service("dispatcher")
    assert settings.held_back is None


def test_a_memory_shorter_than_a_group_may_take_is_refused(tmp_path: Path) -> None:
    config = load(write_run(tmp_path), directory=tmp_path / "run", overrides=["groups.remember_s=600"])
    with pytest.raises(ConfigError, match=r"groups\.remember_s is 600; allowed: more than dispatcher\.group_timeout_s"):
        check(config)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.group_size=1", "run.group_size is 1; allowed: at least 2"),
        ("learner.publish.every=4", "learner.publish.every is 4 with run.max_staleness 2; allowed: at most 3"),
    ],
)
def test_values_with_which_nothing_could_be_trained_are_refused(tmp_path: Path, override: str, message: str) -> None:
    config = load(write_run(tmp_path), directory=tmp_path / "run", overrides=[override])
    with pytest.raises(ConfigError, match=message):
        check_trainable(config)
