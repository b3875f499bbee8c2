"""Weight files: read, compared with their digests, and with the names and shapes the model needs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load
from torch import Tensor

from producers.rollouts.engine import fp8
from producers.rollouts.engine.errors import WeightsRefused
from streams.blobs.digests import digest_of
from streams.weights.blocks import SCALE_SUFFIX
from streams.weights.untrained import read_model_config, untrained

_IN_FLOAT32: Final = ".e_score_correction_bias"


@dataclass(frozen=True, slots=True)
class WeightFile:
    """A local safetensors file; `digest` (`streams.blobs.digests`) of its bytes, or None where nobody announced one."""

    path: Path
    digest: str | None = None


def checkpoint_shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a Hugging Face checkpoint directory, from the headers alone."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return shapes


def unpublished(directory: Path, shapes: Mapping[str, tuple[int, ...]]) -> frozenset[str]:
    """Those of a checkpoint directory's tensors that publications are without. WeightsRefused: no readable config."""
    try:
        return untrained(shapes, read_model_config(directory))
    except (OSError, ValueError) as error:
        raise WeightsRefused(f"model directory {directory} has no readable config.json: {error}") from error


def load_weights(
    files: Sequence[WeightFile],
    expected: Mapping[str, tuple[int, ...]],
    *,
    dtype: torch.dtype,
    round_fp8: bool,
    optional: frozenset[str] = frozenset(),
) -> dict[str, Tensor]:
    """All tensors of `files` as `dtype`, in memory, FP8 ones dequantized; `round_fp8` rounds them through FP8 blocks.

    DeepSeek's routing bias stays in float32, in which the network holds it whatever its dtype: rounded it would choose
    other experts. Of the `expected` names the `optional` ones may be missing.

    Raises `WeightsRefused`, naming the file or tensor, for a missing or damaged file, a wrong digest, a name or shape
    other than `expected`, a tensor that is missing, or a value that is not finite.
    """
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= _read(file)
    coded = {name for name, tensor in tensors.items() if tensor.dtype == fp8.E4M3}
    tensors = _dequantized(tensors, dtype)
    if missing := sorted(expected.keys() - optional - tensors.keys()):
        raise WeightsRefused(f"the weights lack {len(missing)} of {len(expected)} tensors, first {missing[0]!r}")
    for name, tensor in tensors.items():
        if name not in expected:
            raise WeightsRefused(f"the weights hold {name!r}, which the model does not have")
        if tuple(tensor.shape) != expected[name]:
            raise WeightsRefused(f"{name!r} has shape {list(tensor.shape)}, the model's is {list(expected[name])}")
        if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
            raise WeightsRefused(f"{name!r} holds values that are not finite floating numbers")
    return {
        # What came as FP8 is rounded already, by the blocks that it came with.
        name: fp8.rounded(tensor).to(dtype)
        if round_fp8 and name not in coded and fp8.is_quantized(name, tensor)
        else tensor.to(torch.float32 if name.endswith(_IN_FLOAT32) else dtype)
        for name, tensor in tensors.items()
    }


def _read(file: WeightFile) -> dict[str, Tensor]:
    try:
        data = file.path.read_bytes()
    except OSError as error:
        raise WeightsRefused(f"weight file {file.path} cannot be read: {error.strerror}") from error
    if file.digest is not None:
        # Over the very bytes that are parsed, so that nothing can change between the check and the use.
        try:
            digest = digest_of(data, like=file.digest)
        except ValueError as error:
            raise WeightsRefused(f"weight file {file.path}: {error}") from error
        if digest != file.digest:
            raise WeightsRefused(f"weight file {file.path} has digest {digest}, announced was {file.digest}")
    try:
        return dict(load(data))
    except (SafetensorError, ValueError, KeyError) as error:
        raise WeightsRefused(f"weight file {file.path} is not a safetensors file: {error}") from error


def _dequantized(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        scales = tensors.get(name + SCALE_SUFFIX)
        if name.endswith(SCALE_SUFFIX) and name.removesuffix(SCALE_SUFFIX) in tensors:
            continue
        if tensor.dtype != fp8.E4M3:
            result[name] = tensor
        elif scales is None:
            raise WeightsRefused(f"{name!r} is FP8 and comes without its scales {name + SCALE_SUFFIX!r}")
        else:
            try:
                result[name] = fp8.dequantize(tensor, scales, dtype)
            except ValueError as error:
                raise WeightsRefused(f"{name!r}: {error}") from error
    return result
