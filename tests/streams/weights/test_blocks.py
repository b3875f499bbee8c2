"""FP8 on the wire is, to the last bit, what the engine's own rounding in torch makes of the same weights."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from producers.rollouts.engine import fp8
from streams.weights import StoredTensor, WeightsError
from streams.weights.blocks import _VALUES, is_projection, quantize, to_bf16, to_fp8

Scaled = st.tuples(st.integers(0, 2**32), st.sampled_from([1e-38, 1e-20, 1e-3, 1.0, 3e4, 1e30]))


def bf16(values: torch.Tensor) -> StoredTensor:
    return StoredTensor("BF16", tuple(values.shape), values.bfloat16().view(torch.uint16).numpy().reshape(-1))


@settings(deadline=None, max_examples=40)
@given(Scaled, st.sampled_from([(1, 1), (3, 200), (130, 7), (128, 128), (2, 130, 140)]))
def test_codes_and_scales_are_those_of_torch(scaled: tuple[int, float], shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(scaled[0])
    weight = (torch.randn(shape, generator=generator) * scaled[1]).bfloat16().float()
    weight.view(-1)[::5] = 0
    codes, scales = quantize(weight.numpy())
    theirs, their_scales = fp8.quantize(weight)
    assert np.array_equal(scales, their_scales.numpy())
    assert np.array_equal(codes, theirs.view(torch.uint8).numpy())


def test_every_code_means_what_it_means_in_torch() -> None:
    theirs = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    assert np.array_equal(_VALUES, theirs, equal_nan=True)


def test_a_state_goes_there_and_back() -> None:
    torch.manual_seed(0)
    weight, norm = torch.randn(130, 200), torch.randn(200)
    state = {"l.0.q_proj.weight": bf16(weight), "l.0.norm.weight": bf16(norm)}
    wire = to_fp8(state)
    assert {name: each.dtype for name, each in wire.items()} == {
        "l.0.q_proj.weight": "F8_E4M3", "l.0.q_proj.weight_scale_inv": "F32", "l.0.norm.weight": "BF16",
    }  # fmt: skip
    back = to_bf16(wire)
    assert back.keys() == state.keys() and back["l.0.norm.weight"] is state["l.0.norm.weight"]
    rounded = fp8.dequantize(*fp8.quantize(weight.bfloat16()), torch.bfloat16)
    assert np.array_equal(back["l.0.q_proj.weight"].bits, rounded.view(torch.uint16).numpy().reshape(-1))
    del wire["l.0.q_proj.weight_scale_inv"]
    with pytest.raises(WeightsError, match="comes without its scales"):
        to_bf16(wire)


def test_a_value_that_is_not_finite_is_named() -> None:
    with pytest.raises(WeightsError, match=r"'l\.0\.q_proj\.weight' has a value that is not finite"):
        to_fp8({"l.0.q_proj.weight": bf16(torch.tensor([[1.0, float("nan")]]))})


def test_both_ends_choose_the_same_weights() -> None:
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.gate.weight", "lm_head.weight"):
        assert is_projection(name, 2) == fp8.is_quantized(name, torch.zeros(2, 2))
