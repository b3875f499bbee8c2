"""FP8 blocks on the wire: e4m3 bytes with one float32 scale a 128x128 block, from and to bfloat16 bits, in numpy.

The same numbers to the last bit as `producers.rollouts.engine.fp8`, which works on torch tensors where the engine is
(DeepSeek-V3, arXiv 2412.19437, section 3.3.2): scale = largest magnitude / 448, element ≈ e4m3 · scale.
"""

import re
from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from streams.weights.errors import WeightsError
from streams.weights.tensors import Bits, StoredTensor

BLOCK: Final = 128
SCALE_SUFFIX: Final = "_scale_inv"
"""What is appended to a quantized weight's name for its scales."""

_E4M3_MAX: Final = np.float32(448.0)
_TINY: Final = np.finfo(np.float32).tiny
_SMALLEST_NORMAL: Final = np.float32(2.0**-6)
_PROJECTION: Final = re.compile(r"(^|\.)(\w+_proj|gate_up_proj|w[123])(\.weight)?$")

Float = NDArray[np.float32]


def is_projection(name: str, dimensions: int) -> bool:
    """Whether this weight is rounded to FP8: the matrices of attention and experts.

    Embeddings, output head, norms and the routers stay as they are, as in published FP8 checkpoints.
    """
    return dimensions >= 2 and _PROJECTION.search(name) is not None


def to_fp8(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The projections among bfloat16 `tensors` in FP8 with their scales beside them; the others as they are.

    WeightsError, naming it: a projection with a value that is not finite.
    """
    result: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        if tensor.dtype != "BF16" or not is_projection(name, len(tensor.shape)):
            result[name] = tensor
            continue
        values = from_bf16(tensor.bits).reshape(tensor.shape)
        if not np.isfinite(values).all():
            raise WeightsError(f"weight {name!r} has a value that is not finite")
        codes, scales = quantize(values)
        result[name] = StoredTensor("F8_E4M3", tensor.shape, codes.reshape(-1))
        result[name + SCALE_SUFFIX] = StoredTensor("F32", scales.shape, scales.reshape(-1).view(np.uint32))
    return result


def to_bf16(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors with FP8 ones multiplied out and rounded to bfloat16. WeightsError: one without its scales."""
    result: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        if name.endswith(SCALE_SUFFIX) and name.removesuffix(SCALE_SUFFIX) in tensors:
            continue
        if tensor.dtype != "F8_E4M3":
            result[name] = tensor
            continue
        scales = tensors.get(name + SCALE_SUFFIX)
        if scales is None or scales.shape != _scale_shape(tensor.shape):
            raise WeightsError(f"weight {name!r} is FP8 and comes without its scales")
        values = dequantize(tensor.bits.reshape(tensor.shape), scales.bits.view(np.float32).reshape(scales.shape))
        result[name] = StoredTensor("BF16", tensor.shape, to_bf16_bits(values.reshape(-1)))
    return result


def quantize(values: Float) -> tuple[Bits, Float]:
    """float32 `[..., rows, columns]` → (e4m3 bytes of that shape, scales `[..., ⌈rows/128⌉, ⌈columns/128⌉]`)."""
    rows, columns = values.shape[-2:]
    codes = np.empty(values.shape, np.uint8)
    scales = np.ones(_scale_shape(values.shape), np.float32)
    for down in range(0, rows, BLOCK):
        for across in range(0, columns, BLOCK):
            block = values[..., down : down + BLOCK, across : across + BLOCK]
            largest = np.abs(block).max(axis=(-2, -1))
            # Below the smallest normal float32 the quotient would be subnormal, its reciprocal not finite.
            scale = np.maximum(np.where(largest > 0, largest / _E4M3_MAX, np.float32(1.0)), _TINY)
            scales[..., down // BLOCK, across // BLOCK] = scale
            scaled = block / scale[..., None, None]
            codes[..., down : down + BLOCK, across : across + BLOCK] = _encode(scaled)
    return codes, scales


def dequantize(codes: Bits, scales: Float) -> Float:
    """`e4m3 * scale` of each block, float32."""
    values: Float = _VALUES[codes]
    for down in range(0, codes.shape[-2], BLOCK):
        for across in range(0, codes.shape[-1], BLOCK):
            scale = scales[..., down // BLOCK, across // BLOCK]
            values[..., down : down + BLOCK, across : across + BLOCK] *= scale[..., None, None]
    return values


def from_bf16(bits: Bits) -> Float:
    """bfloat16 bits as float32."""
    widened: Float = (bits.astype(np.uint32) << 16).view(np.float32)
    return widened


def to_bf16_bits(values: Float) -> Bits:
    """Finite float32 rounded to bfloat16, ties to even, as bits."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _encode(values: Float) -> Bits:
    """Finite float32 to the nearest e4m3, ties to even, beyond ±448 clamped."""
    magnitude = np.minimum(np.abs(values), _E4M3_MAX)
    bits = magnitude.view(np.uint32)
    # Exponent and three bits of mantissa in one integer, rounded; biases differ by 127 - 7.
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20).astype(np.int32) - (120 << 3)
    subnormal = np.rint(magnitude * np.float32(512.0)).astype(np.int32)
    code = np.where(magnitude < _SMALLEST_NORMAL, subnormal, normal)
    coded: Bits = (code | (np.signbit(values).astype(np.int32) << 7)).astype(np.uint8)
    return coded


def _scale_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:-2], -(-shape[-2] // BLOCK), -(-shape[-1] // BLOCK))


def _decode_table() -> Float:
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, code & 7
    magnitude = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0))
    magnitude[(code & 127) == 127] = np.nan
    return np.where(code & 128, -magnitude, magnitude).astype(np.float32)


_VALUES: Final[Float] = _decode_table()
