"""Block-wise FP8 weights: e4m3 values with one float32 scale a 128x128 block.

The format of DeepSeek-V3 (arXiv 2412.19437, section 3.3.2) and of vLLM's block-wise kernels: a block's scale is its
largest magnitude divided by 448, the largest e4m3 number, so that `weight ≈ e4m3 * scale` uses the whole range.
"""

from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import pad

from streams.weights.blocks import BLOCK, is_projection

E4M3: Final = torch.float8_e4m3fn
E4M3_MAX: Final = torch.finfo(E4M3).max


def is_quantized(name: str, weight: Tensor) -> bool:
    """Whether FP8 rollouts round this weight: the matrices of attention and experts.

    Embeddings, output head, norms and the routers stay as they are, as in published FP8 checkpoints.
    """
    return is_projection(name, weight.ndim)


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rounds `[..., rows, columns]` to `(e4m3 of that shape, float32 scales [..., ⌈rows/128⌉, ⌈columns/128⌉])`.

    Blocks at the edges may be smaller; a block of zeros has scale 1. Raises `ValueError` for fewer than two dimensions,
    a dtype that is not floating, or a value that is not finite.
    """
    if weight.ndim < 2 or not weight.is_floating_point():
        raise ValueError(f"a weight of shape {list(weight.shape)}, {weight.dtype} is not a floating matrix")
    if not torch.isfinite(weight).all():
        raise ValueError(f"a weight of shape {list(weight.shape)} holds a value that is not finite")
    if weight.numel() == 0:
        return weight.to(E4M3), weight.new_ones(_scale_shape(weight.shape), dtype=torch.float32)
    blocks = _blocks(weight.float())
    largest = blocks.abs().amax(dim=(-3, -1))
    # Below the smallest normal float32 the quotient would be subnormal, its reciprocal not finite.
    scales = torch.where(largest > 0, largest / E4M3_MAX, 1.0).clamp(min=torch.finfo(torch.float32).tiny)
    rounded = (blocks / scales[..., :, None, :, None]).clamp(-E4M3_MAX, E4M3_MAX).to(E4M3)
    return _matrix(rounded, weight.shape), scales


def dequantize(e4m3: Tensor, scales: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """`e4m3 * scale` of each block, as `dtype`. Raises `ValueError` when scales and weight do not belong together."""
    if e4m3.dtype != E4M3 or e4m3.ndim < 2:
        raise ValueError(f"a weight of shape {list(e4m3.shape)}, {e4m3.dtype} is not an e4m3 matrix")
    if tuple(scales.shape) != _scale_shape(e4m3.shape):
        raise ValueError(
            f"scales {list(scales.shape)} do not belong to a weight {list(e4m3.shape)} in blocks of {BLOCK}: "
            f"expected {list(_scale_shape(e4m3.shape))}"
        )
    if e4m3.numel() == 0:
        return e4m3.to(dtype)
    return _matrix(_blocks(e4m3.float()) * scales[..., :, None, :, None].float(), e4m3.shape).to(dtype)


def rounded(weight: Tensor) -> Tensor:
    """The weight as FP8 kernels would see it, in its own dtype: numerically W8A16 where there are no FP8 kernels."""
    return dequantize(*quantize(weight), dtype=weight.dtype)


def _scale_shape(shape: torch.Size) -> tuple[int, ...]:
    return (*shape[:-2], -(-shape[-2] // BLOCK), -(-shape[-1] // BLOCK))


def _blocks(weight: Tensor) -> Tensor:
    rows, columns = weight.shape[-2:]
    padded = pad(weight, (0, -columns % BLOCK, 0, -rows % BLOCK))
    down, across = padded.shape[-2] // BLOCK, padded.shape[-1] // BLOCK
    return padded.reshape(*weight.shape[:-2], down, BLOCK, across, BLOCK)


def _matrix(blocks: Tensor, shape: torch.Size) -> Tensor:
    return blocks.flatten(-2).flatten(-3, -2)[..., : shape[-2], : shape[-1]].contiguous()
