"""Arrays on the wire: dtype, shape and bytes, decoded without a copy."""

from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "u1": np.dtype("u1"),
    "u2": np.dtype("<u2"),
    "u4": np.dtype("<u4"),
    "i4": np.dtype("<i4"),
    "i8": np.dtype("<i8"),
    "f4": np.dtype("<f4"),
    "f8": np.dtype("<f8"),
}
MAX_DIMENSIONS: Final = 4


class NDArray(msgspec.Struct, frozen=True, array_like=True):
    """A dense array: little-endian, C order, dtype from an allow-list.

    `data` is a memoryview into the decoded record, so that a 16 MB array costs no copy on its way through.
    Raises ValueError where dtype, shape and the number of bytes do not fit together.
    """

    dtype: str
    shape: tuple[int, ...]
    data: memoryview

    def __post_init__(self) -> None:
        # Four of these are in every rollout that a service decodes: no generator and no product of a tuple.
        dtype = DTYPES.get(self.dtype)
        if dtype is None:
            raise ValueError(f"array dtype {self.dtype!r} is not one of {', '.join(DTYPES)}")
        expected, shape = dtype.itemsize, self.shape
        if len(shape) > MAX_DIMENSIONS or (shape and min(shape) < 0):
            raise ValueError(f"array shape {shape} is not up to {MAX_DIMENSIONS} dimensions of at least 0")
        for n in shape:
            expected *= n
        if expected != self.data.nbytes:
            raise ValueError(f"array {self.dtype}{list(shape)} needs {expected} bytes and has {self.data.nbytes}")

    @classmethod
    def of(cls, array: npt.NDArray[Any]) -> "NDArray":
        """Wrap `array`, copied only where it is not little-endian and C-contiguous. TypeError: dtype not allowed."""
        name = f"{array.dtype.kind}{array.dtype.itemsize}"
        if name not in DTYPES:
            raise TypeError(f"array dtype {array.dtype} is not one of {', '.join(DTYPES)}")
        dense = np.ascontiguousarray(array, dtype=DTYPES[name])
        # A memoryview with a zero in its shape cannot be cast, so an empty array is wrapped from its (empty) bytes.
        data = dense.reshape(-1).view(np.uint8).data if dense.size else memoryview(b"")
        return cls(name, tuple(array.shape), data)

    def numpy(self) -> npt.NDArray[Any]:
        """The array, read-only, on the bytes that were decoded."""
        flat: npt.NDArray[Any] = np.frombuffer(self.data, dtype=DTYPES[self.dtype])
        return flat.reshape(self.shape)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, NDArray):
            return NotImplemented
        return self.dtype == other.dtype and self.shape == other.shape and bytes(self.data) == bytes(other.data)

    def __hash__(self) -> int:
        return hash((self.dtype, self.shape, bytes(self.data)))
