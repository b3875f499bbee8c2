"""A tiny model on disk, and what real process groups of one and two ranks make of it."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from streams.amx import apply_environment
from streams.broker import Broker, BrokerSettings, open_broker

PROGRAM = Path(__file__).with_name("rank_program.py")
ROOT = Path(__file__).parents[2]
DEADLINE_S = 240


def build_model(directory: Path) -> None:
    """Two MoE layers of four experts, vocabulary of 32, random weights, saved as transformers saves it."""
    import torch
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = Qwen3MoeConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=32,
            moe_intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            num_experts=4,
            num_experts_per_tok=2,
            norm_topk_prob=True,
            tie_word_embeddings=False,
            max_position_embeddings=64,
            initializer_range=0.3,
        )
        Qwen3MoeForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)


def run_ranks(world: int, directory: Path, scenarios: Sequence[str]) -> list[dict[str, Any]]:
    """Run `rank_program.py` as `world` processes; the scenarios' results of each rank."""
    apply_environment()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    outputs = [directory / f"said-{world}-{rank}.jsonl" for rank in range(world)]
    with ExitStack() as open_files:
        children = [
            subprocess.Popen(
                [sys.executable, str(PROGRAM), str(rank), str(world), str(directory), *scenarios],
                # Files and not pipes: a rank that waits for its pipe to be read holds up the others.
                stdout=open_files.enter_context(outputs[rank].open("w")),
                stderr=open_files.enter_context(outputs[rank].with_suffix(".err").open("w")),
                env=environment,
            )
            for rank in range(world)
        ]
    try:
        codes = [child.wait(DEADLINE_S) for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()
    complaints = "".join(output.with_suffix(".err").read_text()[-3000:] for output in outputs)
    assert codes == [0] * world, complaints
    return [
        {name: said for line in output.read_text().splitlines() for name, said in json.loads(line).items()}
        for output in outputs
    ]


@pytest.fixture(scope="session")
def log_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A running embedded broker for the tests of feed and service."""
    with open_broker(BrokerSettings(kind="embedded", ephemeral=True), tmp_path_factory.mktemp("broker")) as broker:
        yield broker


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> None:
    """Matrices of these tests are too small to share, and threads that wait for one another starve elsewhere."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def rank_program() -> ModuleType:
    """The program that the ranks run, as a module."""
    spec = importlib.util.spec_from_file_location("rank_program", PROGRAM)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def learner_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds `model/`, and what the ranks leave behind."""
    directory = tmp_path_factory.mktemp("learner")
    build_model(directory / "model")
    return directory


@pytest.fixture(scope="session")
def two_ranks(learner_directory: Path) -> list[dict[str, Any]]:
    """What each of two ranks says of every scenario."""
    scenarios = "train repeat once resume other_model damage full_disk publish nothing modes"
    return run_ranks(2, learner_directory, scenarios.split())


@pytest.fixture(scope="session")
def one_rank(learner_directory: Path, two_ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """What a single rank says; it also reads the checkpoint that the two left."""
    return run_ranks(1, learner_directory, ["train", "resume", "resume_other", "publish"])[0]


@pytest.fixture(scope="session")
def two_ranks_after_one(learner_directory: Path, one_rank: dict[str, Any]) -> list[dict[str, Any]]:
    """Two ranks that read the checkpoint that the single one left."""
    return run_ranks(2, learner_directory, ["resume_other"])
