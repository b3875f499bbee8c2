import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from producers.rollouts.engine import fp8

SIDES = st.integers(1, 300)


def random_matrix(rows: int, columns: int, seed: int, scale: float = 1.0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * scale


@settings(max_examples=60, deadline=None)
@given(rows=SIDES, columns=SIDES, seed=st.integers(0, 2**31), exponent=st.integers(-20, 20))
def test_error_is_within_the_rounding_of_e4m3(rows: int, columns: int, seed: int, exponent: int) -> None:
    weight = random_matrix(rows, columns, seed, 2.0**exponent)
    values, scales = fp8.quantize(weight)
    assert values.dtype == torch.float8_e4m3fn and values.shape == weight.shape
    assert scales.dtype == torch.float32 and scales.shape == (-(-rows // 128), -(-columns // 128))
    spread = scales.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
    # Three mantissa bits: half a step is 1/16 of a normal number, and 2^-10 below the smallest normal one.
    bound = torch.maximum(weight.abs() / 16, spread * 2.0**-10) * (1 + 1e-5)
    assert ((fp8.dequantize(values, scales) - weight).abs() <= bound).all()


@settings(max_examples=30, deadline=None)
@given(rows=SIDES, columns=SIDES, seed=st.integers(0, 2**31))
def test_rounding_twice_changes_nothing(rows: int, columns: int, seed: int) -> None:
    once = fp8.dequantize(*fp8.quantize(random_matrix(rows, columns, seed)))
    twice = fp8.dequantize(*fp8.quantize(once))
    assert torch.allclose(once, twice, rtol=1e-6, atol=0)


def test_each_block_has_the_scale_of_its_own_largest_value() -> None:
    weight = torch.zeros(130, 256)
    weight[3, 5], weight[129, 200] = -896.0, 4.48
    values, scales = fp8.quantize(weight)
    assert torch.allclose(scales, torch.tensor([[2.0, 1.0], [1.0, 0.01]]))
    assert float(values[3, 5].float()) == -448 and float(values[129, 200].float()) == 448


def test_blocks_of_zeros_stay_zero() -> None:
    weight = torch.zeros(129, 127)
    assert torch.equal(fp8.dequantize(*fp8.quantize(weight)), weight)


def test_stacked_experts_are_rounded_one_by_one() -> None:
    experts = torch.stack([random_matrix(140, 130, seed, 10.0**seed) for seed in range(3)])
    values, scales = fp8.quantize(experts)
    for expert in range(3):
        alone, alone_scales = fp8.quantize(experts[expert])
        assert torch.equal(values[expert].float(), alone.float()) and torch.equal(scales[expert], alone_scales)


def test_rounded_keeps_the_dtype() -> None:
    assert fp8.rounded(torch.ones(4, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("weight", [torch.ones(4), torch.ones(2, 2, dtype=torch.int32), torch.tensor([[float("nan")]])])
def test_quantize_refuses(weight: Tensor) -> None:
    with pytest.raises(ValueError, match="weight of shape"):
        fp8.quantize(weight)


def test_dequantize_refuses_scales_of_another_shape() -> None:
    values, _ = fp8.quantize(torch.ones(129, 4))
    with pytest.raises(ValueError, match=r"scales \[1, 1\] do not belong"):
        fp8.dequantize(values, torch.ones(1, 1))


@pytest.mark.parametrize(
    ("name", "quantized"),
    [
        ("model.layers.0.self_attn.q_proj.weight", True),
        ("model.layers.0.mlp.experts.3.down_proj.weight", True),
        ("model.layers.0.block_sparse_moe.experts.1.w2.weight", True),
        ("model.layers.0.mlp.gate.weight", False),
        ("model.embed_tokens.weight", False),
        ("lm_head.weight", False),
    ],
)
def test_which_weights_are_rounded(name: str, quantized: bool) -> None:
    assert fp8.is_quantized(name, torch.ones(2, 2)) is quantized
