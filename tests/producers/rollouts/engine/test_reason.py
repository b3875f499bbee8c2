"""Why an engine did not start, in its own words and not in those that send one to look above."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from producers.rollouts.engine.reason import mark, said_since

START = """
import asyncio, sys
from producers.rollouts.engine.engine import RolloutEngine
from producers.rollouts.engine.errors import EngineStartError
from producers.rollouts.engine.settings import EngineSettings

async def start():
    try:
        await RolloutEngine(EngineSettings(model=sys.argv[1], max_model_len=64, kv_cache_dtype="fp8")).start()
    except EngineStartError as error:
        print(f"SAID: {error}")

if __name__ == "__main__":
    asyncio.run(start())
"""


def test_the_last_exception_since_the_mark_is_the_reason(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w+") as file:
        print("(EngineCore pid=7) ValueError: of an earlier engine", file=file, flush=True)
        marked = mark(file.fileno())
        assert marked is not None and said_since(marked, file.fileno()) == ""
        print("(EngineCore pid=8)     raise NotImplementedError(", file=file)
        print("(EngineCore pid=8) NotImplementedError: no FP8 here", file=file)
        print("RuntimeError: Engine core initialization failed. See root cause above.", file=file, flush=True)
        assert said_since(marked, file.fileno()) == "NotImplementedError: no FP8 here"


def test_a_pipe_keeps_nothing() -> None:
    reading, writing = os.pipe()
    assert mark(writing) is None and said_since(None, writing) == ""
    os.close(reading)
    os.close(writing)


@pytest.mark.engine
@pytest.mark.timeout(180)
def test_an_engine_that_cannot_start_says_why(tmp_path: Path) -> None:
    config = Qwen3MoeConfig(
        vocab_size=64, hidden_size=64, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2, intermediate_size=64,
        max_position_embeddings=128, mlp_only_layers=[], decoder_sparse_step=1,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path / "model")
    (tmp_path / "start.py").write_text(START)
    with (tmp_path / "log").open("w") as log:
        done = subprocess.run(
            [sys.executable, str(tmp_path / "start.py"), str(tmp_path / "model")],
            stdout=subprocess.PIPE, stderr=log, text=True, timeout=150, check=False,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[4])},
        )  # fmt: skip
    said = next(line for line in done.stdout.splitlines() if line.startswith("SAID: "))
    assert said == (
        "SAID: the engine did not start: NotImplementedError: FP8 KV cache requires head_size divisible by 32 on CPU."
    )
