"""Which precision cached keys and values have where nobody says one."""

import json
from pathlib import Path
from typing import Any

import pytest

from producers.rollouts.kv_cache import cache_dtype, fp8_obstacle
from producers.rollouts.settings import ProducerSettings

FULL = "fpu sse avx2 avx512f avx512dq avx512bw avx512vl"
MODEL = {"hidden_size": 128, "num_attention_heads": 4}


def processor(directory: Path, flags: str) -> Path:
    path = directory / "cpuinfo"
    path.write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    return path


@pytest.mark.parametrize(
    ("flags", "device", "config", "why"),
    [
        (FULL, "cpu", MODEL, ""),
        ("fpu amx_tile", "cpu", MODEL, ""),
        ("fpu avx2", "cpu", MODEL, "needs AVX-512 or AMX, which this processor has not"),
        ("fpu avx512f", "cpu", MODEL, "needs AVX-512"),
        ("fpu avx2", "cuda", MODEL, ""),
        (FULL, "cpu", MODEL | {"head_dim": 16}, "its heads have 16 values"),
        (FULL, "cpu", {"hidden_size": 96, "num_attention_heads": 4}, "its heads have 24 values"),
        (FULL, "cpu", MODEL | {"kv_lora_rank": 512}, "latent attention has no FP8 cache"),
        (FULL, "cuda", MODEL | {"kv_lora_rank": 512}, ""),
    ],
)
def test_fp8_is_taken_where_machine_and_model_can(
    tmp_path: Path, flags: str, device: str, config: dict[str, Any], why: str
) -> None:
    cpuinfo = processor(tmp_path, flags)
    (tmp_path / "config.json").write_text(json.dumps(config))
    said = fp8_obstacle(config, device, cpuinfo)
    assert (why in said) if why else not said
    assert cache_dtype(None, tmp_path, device, cpuinfo) == ("auto" if why else "fp8")
    assert cache_dtype("fp8", tmp_path, device, cpuinfo) == "fp8", "what somebody has said is not changed"


def test_a_processor_that_cannot_be_read_has_none(tmp_path: Path) -> None:
    assert fp8_obstacle(MODEL, "cpu", tmp_path / "none")


def test_the_engine_gets_one_of_vllms_words(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MODEL | {"head_dim": 16}))
    (tmp_path / "model.safetensors").touch()
    assert ProducerSettings(model=str(tmp_path)).engine_settings(0).kv_cache_dtype == "auto"
