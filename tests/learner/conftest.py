"""A tiny model on disk, and what real process groups of one and two ranks make of it."""

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from streams.broker import Broker
from streams.processes.amx import apply_environment
from tests.builders import context_of
from tests.run_logs import new_run

PROGRAM = Path(__file__).with_name("rank_program.py")
ZYGOTE = Path(__file__).with_name("zygote.py")
ROOT = Path(__file__).parents[2]
DEADLINE_S = 240


def build_model(directory: Path, layers: int = 2) -> None:
    """Two (or so many) MoE layers of four experts, vocabulary of 32, random weights, saved as transformers saves it."""
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
            num_hidden_layers=layers,
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


class Rank:
    """A process that the zygote forked; much like a Popen."""

    def __init__(self, zygote: "Zygote", pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._zygote = zygote

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        if self.returncode is None:
            self.returncode = self._zygote.ask({"poll": self.pid})
        return self.returncode

    def wait(self, timeout_s: float) -> int:
        """The exit code. TimeoutError."""
        deadline = time.monotonic() + timeout_s
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"rank process {self.pid} did not end within {timeout_s:g} s")
            with suppress(ProcessLookupError):
                descriptor = os.pidfd_open(self.pid)
                select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
                os.close(descriptor)
        return code

    def send_signal(self, number: int) -> None:
        """Unless it was seen to have ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


class Zygote:
    """See `zygote.py`."""

    def __init__(self) -> None:
        apply_environment()
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
        environment = {**os.environ, **threads, "PYTHONPATH": str(ROOT)}
        # Without compiled modules its imports take three times as long.
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, str(ZYGOTE)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, request: object) -> Any:
        """One request and its answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())

    def await_ready(self) -> None:
        """Its imports are done."""
        assert self._process.stdout is not None
        assert json.loads(self._process.stdout.readline()) == "ready"

    def start(self, program: str, arguments: Sequence[str], stdout: Path, stderr: Path, **env: str) -> Rank:
        """A rank. Files and not pipes: one that waits for its pipe to be read holds up the others."""
        request = {"program": program, "arguments": list(arguments), "env": env}
        return Rank(self, self.ask({**request, "stdout": str(stdout), "stderr": str(stderr)}))

    def close(self) -> None:
        """Ends it, and with it every rank."""
        self._process.communicate()


def run_ranks(zygote: Zygote, world: int, directory: Path, scenarios: Sequence[str]) -> list[dict[str, Any]]:
    """Run `rank_program.py` as `world` processes; the scenarios' results of each rank."""
    outputs = [directory / f"said-{world}-{rank}-{scenarios[0]}.jsonl" for rank in range(world)]
    children = [
        zygote.start(
            "ranks",
            [str(rank), str(world), str(directory), *scenarios],
            outputs[rank],
            outputs[rank].with_suffix(".err"),
        )
        for rank in range(world)
    ]
    try:
        codes = [child.wait(DEADLINE_S) for child in children]
    finally:
        for child in children:
            child.kill()
    complaints = "".join(output.with_suffix(".err").read_text()[-3000:] for output in outputs)
    assert codes == [0] * world, complaints
    return [
        {name: said for line in output.read_text().splitlines() for name, said in json.loads(line).items()}
        for output in outputs
    ]


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """Starts ranks."""
    made = Zygote()
    try:
        made.await_ready()
        yield made
    finally:
        made.close()


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> None:
    """Matrices of these tests are too small to share, and threads that wait for one another starve elsewhere."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def learner_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds `model/`, and what the ranks leave behind."""
    directory = tmp_path_factory.mktemp("learner")
    build_model(directory / "model")
    return directory


@pytest.fixture
def another_model(tmp_path: Path) -> Path:
    """A model of one layer more."""
    build_model(tmp_path / "another", layers=3)
    return tmp_path / "another"


@pytest.fixture(scope="session")
def two_ranks(zygote: Zygote, learner_directory: Path) -> list[dict[str, Any]]:
    """What each of two ranks says of every scenario."""
    scenarios = (
        "train repeat once resume other_model damage damages full_disk publish nothing modes accumulated kl shaped"
    )
    return run_ranks(zygote, 2, learner_directory, scenarios.split())


@pytest.fixture(scope="session")
def one_rank(zygote: Zygote, learner_directory: Path, two_ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """What a single rank says; it also reads the checkpoint that the two left."""
    return run_ranks(zygote, 1, learner_directory, ["train", "resume", "resume_from_2", "publish"])[0]


@pytest.fixture(scope="session")
def three_ranks(zygote: Zygote, learner_directory: Path) -> list[dict[str, Any]]:
    """Three ranks, over which the model's tensors are not dealt evenly: one of them holds no expert at all."""
    return run_ranks(zygote, 3, learner_directory, ["train", "resume"])


@pytest.fixture(scope="session")
def four_ranks(zygote: Zygote, learner_directory: Path, two_ranks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Four ranks that read the checkpoint that two left, and four that hold the model twice."""
    return run_ranks(zygote, 4, learner_directory, ["resume_from_2", "copies"])


@pytest.fixture(scope="session")
def two_ranks_after_others(
    zygote: Zygote, learner_directory: Path, one_rank: dict[str, Any], three_ranks: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Two ranks that read the checkpoints that one and three left."""
    return run_ranks(zygote, 2, learner_directory, ["resume_from_1", "resume_from_3"])


@pytest.fixture
async def run(zygote: Zygote, log_broker: Broker, learner_directory: Path, tmp_path: Path) -> Any:
    """A fresh run of the learner service, two ranks."""
    from tests.learner.service_run import PARTITIONS, Run

    log = await asyncio.to_thread(new_run, log_broker, PARTITIONS)
    settings = {
        "model": str(learner_directory / "model"),
        "checkpoint_every": 2,
        "warmup_steps": 0,
        # Processes of one run are given different ends here, which the rate would follow.
        "decay_steps": 40,
        "learning_rate": 1e-2,
        "collective_timeout_s": 30.0,
        "fetch_timeout_s": 3.0,
    }
    return Run(zygote, context_of(log, tmp_path, replicas=2, config_digest="sha256:00"), settings)
