"""Settings and weight files: what is refused, without an engine."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from producers.rollouts.engine import fp8
from producers.rollouts.engine.errors import EngineSettingsError, WeightsRefused
from producers.rollouts.engine.settings import EngineSettings
from producers.rollouts.engine.weight_files import WeightFile, checkpoint_shapes, load_weights, unpublished

SHAPES = {"a.q_proj.weight": (130, 20), "norm.weight": (20,)}


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn(shape) for name, shape in SHAPES.items()}


def load(path: Path, digest: str | None = None, round_fp8: bool = False) -> dict[str, torch.Tensor]:
    return load_weights([WeightFile(path, digest)], SHAPES, dtype=torch.bfloat16, round_fp8=round_fp8)


def saved(directory: Path, content: dict[str, torch.Tensor]) -> Path:
    path = directory / "model.safetensors"
    save_file(content, path)
    return path


def test_weights_come_back_as_the_models_dtype(tmp_path: Path) -> None:
    path = saved(tmp_path, tensors())
    digest = hashlib.blake2b(path.read_bytes(), digest_size=32).hexdigest()
    loaded = load(path, digest)
    assert all(torch.equal(loaded[name], tensor.bfloat16()) for name, tensor in tensors().items())
    assert checkpoint_shapes(tmp_path) == SHAPES


def test_rounding_touches_projections_alone(tmp_path: Path) -> None:
    loaded = load(saved(tmp_path, tensors()), round_fp8=True)
    assert torch.equal(loaded["norm.weight"], tensors()["norm.weight"].bfloat16())
    assert torch.equal(loaded["a.q_proj.weight"], fp8.rounded(tensors()["a.q_proj.weight"]).bfloat16())


def test_fp8_on_the_wire_is_dequantized(tmp_path: Path) -> None:
    plain = tensors()
    values, scales = fp8.quantize(plain["a.q_proj.weight"])
    wire = plain | {"a.q_proj.weight": values, "a.q_proj.weight_scale_inv": scales}
    loaded = load(saved(tmp_path, wire))
    assert torch.equal(loaded["a.q_proj.weight"], fp8.dequantize(values, scales, torch.bfloat16))
    del wire["a.q_proj.weight_scale_inv"]
    with pytest.raises(WeightsRefused, match="comes without its scales"):
        load(saved(tmp_path, wire))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"other.weight": torch.ones(1)}, "'other.weight', which the model does not have"),
        ({"norm.weight": torch.ones(21)}, r"'norm.weight' has shape \[21\], the model's is \[20\]"),
        ({"norm.weight": torch.full((20,), float("nan"))}, "'norm.weight' holds values that are not finite"),
        ({"norm.weight": torch.ones(20, dtype=torch.int64)}, "'norm.weight' holds values that are not finite"),
        ({"norm.weight": None}, "lack 1 of 2 tensors, first 'norm.weight'"),
    ],
)
def test_other_tensors_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    content = {name: tensor for name, tensor in (tensors() | change).items() if tensor is not None}
    with pytest.raises(WeightsRefused, match=message):
        load(saved(tmp_path, content))


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, tensors())
    with pytest.raises(WeightsRefused, match="announced was 00"):
        load(path, "00")
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(WeightsRefused, match="is not a safetensors file"):
        load(path)
    with pytest.raises(WeightsRefused, match="cannot be read: No such file"):
        load(tmp_path / "none")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "/none"}, "model '/none' is not a directory with a config.json"),
        ({"max_num_seqs": 0}, "max_num_seqs 0 is not at least 1"),
        ({"call_timeout_s": 0.0}, "call_timeout_s 0.0 is not above 0"),
        ({"tensor_parallel": 2}, "tensor_parallel 2 needs device cuda"),
        ({"extra": {"data_parallel_size": 2}}, "data_parallel_size in extra must be 1"),
        ({"extra": {"enable_prefix_caching": True}}, "must stay off"),
    ],
)
def test_settings_refuse(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    saved(tmp_path, tensors())
    with pytest.raises(EngineSettingsError, match=message):
        EngineSettings(**({"model": str(tmp_path)} | change))


def test_fp8_uses_kernels_on_cuda_and_rounding_on_cpu(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    saved(tmp_path, tensors())
    cpu = EngineSettings(model=str(tmp_path), precision="fp8")
    cuda = EngineSettings(model=str(tmp_path), precision="fp8", device="cuda", tensor_parallel=2)
    assert cpu.rounds_weights and "quantization" not in cpu.arguments()
    assert not cuda.rounds_weights and cuda.arguments()["quantization"] == "fp8_per_block"
    assert cuda.arguments()["tensor_parallel_size"] == 2 and "kv_cache_memory_bytes" not in cuda.arguments()


HEAD = "model.layers.3.eh_proj.weight"
BIAS = "model.layers.2.mlp.gate.e_score_correction_bias"


def test_a_publication_is_without_prediction_heads_and_its_routing_bias_is_not_rounded(tmp_path: Path) -> None:
    """A DeepSeek directory: the heads that it holds are not trained, and 0.1 in bfloat16 may choose another expert."""
    whole = tensors() | {HEAD: torch.ones(20, 20), BIAS: torch.full((8,), 0.1)}
    path = saved(tmp_path, whole)
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 3, "num_nextn_predict_layers": 1}')
    shapes = checkpoint_shapes(tmp_path)
    optional = unpublished(tmp_path, shapes)
    assert optional == {HEAD}

    def loaded() -> dict[str, torch.Tensor]:
        return load_weights(
            [WeightFile(path)], shapes, dtype=torch.bfloat16, round_fp8=False, optional=optional
        )  # fmt: skip

    assert loaded().keys() == whole.keys()
    saved(tmp_path, {name: tensor for name, tensor in whole.items() if name != HEAD})
    assert loaded().keys() == whole.keys() - {HEAD}
    assert loaded()[BIAS].dtype == torch.float32 and torch.equal(loaded()[BIAS], whole[BIAS])
    saved(tmp_path, {name: tensor for name, tensor in whole.items() if name not in (HEAD, BIAS)})
    with pytest.raises(WeightsRefused, match=f"lack 1 of 4 tensors, first '{BIAS}'"):
        loaded()
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WeightsRefused, match=r"no readable config\.json"):
        unpublished(tmp_path, shapes)
