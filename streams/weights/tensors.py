"""Tensors as bits, and the safetensors files that hold them, without torch.

numpy has neither bfloat16 nor float8; nothing here computes with the numbers, so unsigned integers stand for them.
"""

import hashlib
import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from streams.blobs.digests import Hasher
from streams.weights.errors import WeightsError

Bits = NDArray[Any]
"""Unsigned integers, one an element, flat."""

DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "BF16": np.dtype("<u2"),
    "F16": np.dtype("<u2"),
    "F32": np.dtype("<u4"),
    "F8_E4M3": np.dtype("u1"),
}
"""safetensors' names of what weights are published in → the unsigned integers of the same width."""

TENSOR_DIGEST_BYTES: Final = 16
_MAX_HEADER_BYTES: Final = 100_000_000
"""As in safetensors' own reader."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor: safetensors' dtype name, shape, and its elements in C order as flat unsigned integers."""

    dtype: str
    shape: tuple[int, ...]
    bits: Bits

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return int(self.bits.nbytes)


def tensor_digest(tensor: StoredTensor) -> bytes:
    """SHA-256 of dtype, shape and elements, cut to 128 bits: a delta carries one for every tensor that it changes."""
    hasher = hashlib.sha256(f"{tensor.dtype}{list(tensor.shape)}".encode())
    hasher.update(np.ascontiguousarray(tensor.bits).data)
    return hasher.digest()[:TENSOR_DIGEST_BYTES]


def state_digest(digests: Mapping[str, bytes]) -> str:
    """One digest (`streams.blobs.digests`) over the names and digests of all tensors, in the order of their names."""
    hasher = Hasher()
    for name in sorted(digests):
        encoded = name.encode()
        hasher.update(struct.pack("<I", len(encoded)) + encoded + digests[name])
    return hasher.digest()


def write_file(path: Path, tensors: Mapping[str, StoredTensor]) -> None:
    """A safetensors file, widest elements first and then by name, as its own writer lays them out. OSError."""
    order = sorted(tensors, key=lambda name: (-tensors[name].bits.itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        tensor = tensors[name]
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [end, end + tensor.nbytes]}
        end += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            file.write(np.ascontiguousarray(tensors[name].bits).data)


def read_file(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file, mapped and not read. WeightsError: it is none. OSError: it cannot be read."""
    data = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
    try:
        (length,) = struct.unpack("<Q", data[:8].tobytes())
        if length > min(_MAX_HEADER_BYTES, data.nbytes - 8):
            raise ValueError(f"its header is said to have {length} bytes")
        header = json.loads(data[8 : 8 + length].tobytes())
        header.pop("__metadata__", None)
        body = data[8 + length :]
        return {name: _tensor(name, entry, body) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise WeightsError(f"weight file {path} is not a safetensors file: {error}") from error


def parts(tensors: Mapping[str, StoredTensor], max_bytes: int) -> Iterable[dict[str, StoredTensor]]:
    """The tensors in the order of their names, in portions of about `max_bytes` at most.

    A tensor whose name begins with the one before it (the scales of an FP8 weight) stays with it.
    """
    part: dict[str, StoredTensor] = {}
    size, before = 0, ""
    for name, tensor in sorted(tensors.items()):
        if part and size + tensor.nbytes > max_bytes and not name.startswith(before):
            yield part
            part, size = {}, 0
        part[name] = tensor
        size += tensor.nbytes
        before = name
    if part:
        yield part


def _tensor(name: str, entry: Mapping[str, Any], body: Bits) -> StoredTensor:
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"{name!r} has dtype {entry['dtype']!r}, which is not one of {', '.join(DTYPES)}")
    dtype, shape = DTYPES[entry["dtype"]], tuple(int(size) for size in entry["shape"])
    first, last = (int(offset) for offset in entry["data_offsets"])
    if min(shape, default=0) < 0 or not 0 <= first <= last <= body.nbytes:
        raise ValueError(f"{name!r} lies outside the file")
    if last - first != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name!r} has {last - first} bytes, which is not {entry['dtype']}{list(shape)}")
    # The writer of another file may not have aligned it; a view of bytes cannot be cast then.
    raw = body[first:last]
    flat = raw.view(dtype) if raw.ctypes.data % dtype.itemsize == 0 else np.frombuffer(raw.tobytes(), dtype)
    return StoredTensor(entry["dtype"], shape, flat)
