"""The delta format: which elements of which tensors have which new bits.

    magic "EPDELTA1" | u4 bytes of the header | header | streams

The header is a zstd-compressed MessagePack array (`_Header`); a tensor is named by its place among the base's names in
order, and has the base's dtype and shape. The streams follow in its order, each a zstd frame. Positions are coded as
gaps to the one before, in as many bytes as the tensor's widest gap needs. Gaps and values are split into planes of
equal significance: high bytes have little entropy, and low ones are not in its way. Values are the new ones
("overwrite") and not differences: what is applied twice is applied once.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np
import zstandard
from numpy.typing import NDArray

from streams.weights.errors import WeightsError
from streams.weights.tensors import DTYPES, Bits, StoredTensor, tensor_digest

MAGIC: Final = b"EPDELTA1"
_LEVEL: Final = 3
_GAP_BYTES: Final = (1, 2, 4, 8)
CHECK_BYTES: Final = 4
"""Of each changed tensor's digest: enough to name the one that is wrong. The state's whole digest is in the event."""

_MAX_HEADER_BYTES: Final = 1 << 28


@dataclass(frozen=True, slots=True)
class Patch:
    """Changed elements of one tensor: ascending flat `positions` int64 `[k]`, their new `values` `[k]` as bits.

    `check` is the beginning of the whole tensor's digest once they are in place.
    """

    dtype: str
    shape: tuple[int, ...]
    positions: NDArray[np.int64]
    values: Bits
    check: bytes


class _Header(msgspec.Struct, frozen=True, array_like=True):
    """Columns, one entry a changed tensor: places since the one before it, changed elements, bytes of a gap, checks."""

    version: int
    base_version: int
    base_digest: str
    steps: tuple[int, ...]
    changed: tuple[int, ...]
    gap_bytes: tuple[int, ...]
    checks: bytes
    streams: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    dtype: str
    shape: tuple[int, ...]
    changed: int
    gap_bytes: int
    check: bytes


Layout = Mapping[str, tuple[str, tuple[int, ...]]]
"""Name → (dtype, shape) of every tensor of a state."""


@dataclass(frozen=True, slots=True)
class Delta:
    """One decoded file: `patches` by tensor name, to be applied to weights `base_version` with `base_digest`."""

    version: int
    base_version: int
    base_digest: str
    patches: Mapping[str, Patch]


def difference(base: Mapping[str, StoredTensor], new: Mapping[str, StoredTensor]) -> dict[str, Patch] | None:
    """What turns `base` into `new`, tensors that differ only; None where names, dtypes or shapes differ."""
    if base.keys() != new.keys():
        return None
    patches: dict[str, Patch] = {}
    for name, tensor in new.items():
        old = base[name]
        if (old.dtype, old.shape) != (tensor.dtype, tensor.shape):
            return None
        positions = np.flatnonzero(old.bits != tensor.bits)
        if len(positions):
            check = tensor_digest(tensor)[:CHECK_BYTES]
            patches[name] = Patch(tensor.dtype, tensor.shape, positions, tensor.bits[positions], check)
    return patches


def layout_of(state: Mapping[str, StoredTensor]) -> Layout:
    """What `encode` and `decode` must agree on."""
    return {name: (tensor.dtype, tensor.shape) for name, tensor in state.items()}


def applied(tensor: StoredTensor, patch: Patch) -> StoredTensor:
    """`tensor` with the patch's values, copied. WeightsError: another dtype or shape. The caller checks the digest."""
    if (tensor.dtype, tensor.shape) != (patch.dtype, patch.shape):
        raise WeightsError(
            f"a delta for {patch.dtype}{list(patch.shape)} does not fit {tensor.dtype}{list(tensor.shape)}"
        )
    bits = np.array(tensor.bits)
    bits[patch.positions] = patch.values
    return StoredTensor(tensor.dtype, tensor.shape, bits)


def encode(delta: Delta, layout: Layout) -> bytes:
    """The file's bytes: the same for the same delta. `layout` is of the whole base, of every file of it."""
    compressor = zstandard.ZstdCompressor(level=_LEVEL)
    names = sorted(delta.patches)
    gaps = {name: _gaps(delta.patches[name].positions) for name in names}
    widths = {name: _width(gaps[name]) for name in names}
    frames = []
    for width in _GAP_BYTES:
        chosen = [gaps[name] for name in names if widths[name] == width]
        frames += _planes(chosen, np.dtype(f"<u{width}"), compressor)
    for dtype, kind in DTYPES.items():
        values = [delta.patches[name].values for name in names if delta.patches[name].dtype == dtype]
        frames += _planes(values, kind, compressor)
    places = {name: place for place, name in enumerate(sorted(layout))}
    header = _Header(
        delta.version,
        delta.base_version,
        delta.base_digest,
        steps=tuple(int(step) for step in np.diff([places[name] for name in names], prepend=-1)),
        changed=tuple(len(delta.patches[name].positions) for name in names),
        gap_bytes=tuple(widths[name] for name in names),
        checks=b"".join(delta.patches[name].check for name in names),
        streams=tuple(map(len, frames)),
    )
    packed = compressor.compress(msgspec.msgpack.encode(header))
    return b"".join([MAGIC, len(packed).to_bytes(4, "little"), packed, *frames])


def decode(data: bytes | memoryview, layout: Layout) -> Delta:
    """What `encode` wrote. WeightsError: it is not that, says of itself what cannot be, or is for another layout."""
    try:
        return _decode(data, layout)
    except (ValueError, IndexError, OverflowError, msgspec.DecodeError, zstandard.ZstdError) as error:
        raise WeightsError(f"a delta of {len(data)} bytes does not decode: {error}") from error


def _decode(data: bytes | memoryview, layout: Layout) -> Delta:
    start = len(MAGIC) + 4
    if data[: len(MAGIC)] != MAGIC:
        raise ValueError(f"it does not begin with {MAGIC.decode()}")
    end = start + int.from_bytes(data[len(MAGIC) : start], "little")
    header = msgspec.msgpack.decode(_decompressed(data[start:end]), type=_Header)
    entries = _entries(header, layout)
    frames = _frames(data, end, header.streams)
    gaps: dict[str, NDArray[np.uint64]] = {}
    values: dict[str, Bits] = {}
    for width in _GAP_BYTES:
        chosen = [entry for entry in entries if entry.gap_bytes == width]
        for entry, part in _joined(chosen, np.dtype(f"<u{width}"), frames):
            gaps[entry.name] = part.astype(np.uint64)
    for dtype, kind in DTYPES.items():
        chosen = [entry for entry in entries if entry.dtype == dtype]
        values |= {entry.name: part for entry, part in _joined(chosen, kind, frames)}
    patches = {
        entry.name: Patch(
            entry.dtype, entry.shape, _positions(gaps[entry.name], entry), values[entry.name], entry.check
        )
        for entry in entries
    }
    return Delta(header.version, header.base_version, header.base_digest, patches)


def _entries(header: _Header, layout: Layout) -> list[_Entry]:
    names = sorted(layout)
    places = np.cumsum(header.steps, dtype=np.int64) - 1
    columns = len(header.steps), len(header.changed), len(header.gap_bytes), len(header.checks) / CHECK_BYTES
    if len(set(columns)) != 1 or min(header.steps, default=1) < 1 or max(places, default=0) >= len(names):
        raise ValueError(f"{len(header.steps)} tensors that are not among the base's {len(names)}")
    entries = []
    for number, (place, changed, width) in enumerate(zip(places, header.changed, header.gap_bytes, strict=True)):
        name = names[place]
        dtype, shape = layout[name]
        if dtype not in DTYPES or width not in _GAP_BYTES or not 0 < changed <= math.prod(shape):
            raise ValueError(f"{changed} changed elements of {name!r} {dtype}{list(shape)}")
        check = header.checks[number * CHECK_BYTES :][:CHECK_BYTES]
        entries.append(_Entry(name, dtype, shape, changed, width, check))
    return entries


def _gaps(positions: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.diff(positions, prepend=-1) - 1


def _positions(gaps: NDArray[np.uint64], entry: _Entry) -> NDArray[np.int64]:
    size = math.prod(entry.shape)
    # Each alone first, so that no sum of hostile gaps wraps around into the tensor.
    if (gaps >= size).any():
        raise ValueError(f"a position outside {entry.name!r}")
    positions = np.cumsum(gaps.astype(np.int64) + 1) - 1
    if positions[-1] >= size or (positions < 0).any():
        raise ValueError(f"a position outside {entry.name!r}")
    return positions


def _width(gaps: NDArray[np.int64]) -> int:
    largest = int(gaps.max())
    return next(width for width in _GAP_BYTES if largest < 1 << 8 * width)


def _planes(arrays: Sequence[Bits], dtype: np.dtype, compressor: zstandard.ZstdCompressor) -> list[bytes]:
    """One frame a byte of `dtype`, lowest first, over all arrays; none where there are no arrays."""
    if not arrays:
        return []
    joined = np.concatenate([array.astype(dtype, copy=False) for array in arrays])
    planes = joined.view(np.uint8).reshape(-1, dtype.itemsize)
    return [compressor.compress(np.ascontiguousarray(planes[:, plane]).data) for plane in range(dtype.itemsize)]


def _joined(
    entries: Sequence[_Entry],
    dtype: np.dtype,
    frames: Iterator[memoryview],
) -> Iterator[tuple[_Entry, Bits]]:
    if not entries:
        return
    total = sum(entry.changed for entry in entries)
    planes = np.empty((total, dtype.itemsize), np.uint8)
    for plane in range(dtype.itemsize):
        planes[:, plane] = np.frombuffer(_decompressed(next(frames), total), np.uint8)
    joined = planes.reshape(-1).view(dtype)
    start = 0
    for entry in entries:
        yield entry, joined[start : start + entry.changed]
        start += entry.changed


def _frames(data: bytes | memoryview, start: int, lengths: Sequence[int]) -> Iterator[memoryview]:
    view = memoryview(data)
    if min(lengths, default=0) < 0 or start + sum(lengths) != len(data):
        raise ValueError(f"streams of {sum(lengths)} bytes in the {len(data) - start} after the header")
    for length in lengths:
        yield view[start : start + length]
        start += length
    # One stream too few is a malformed file, and not the end of an iteration.
    raise ValueError("it has fewer streams than its tensors need")


def _decompressed(frame: bytes | memoryview, expected: int | None = None) -> bytes:
    # Asked for first, so that nothing that says it is huge is ever made room for.
    size = zstandard.get_frame_parameters(frame).content_size
    if size != expected and (expected is not None or not 0 <= size <= _MAX_HEADER_BYTES):
        raise ValueError(f"a stream of {size} bytes where {expected or 'a header'} was expected")
    return zstandard.ZstdDecompressor().decompress(frame)
