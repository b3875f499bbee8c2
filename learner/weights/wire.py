"""What goes on the wire next: a full anchor, or the elements that changed since the version before.

An anchor is due in a new process (what was published before it is not in memory), every `anchor_every` versions,
where a tensor came or went, and where a delta would not be smaller.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import torch
from torch import Tensor

from learner.errors import ModelError
from learner.settings import PublishSettings
from streams.weights import StoredTensor, WeightsError, state_digest, tensor_digest, write_file
from streams.weights.blocks import to_fp8
from streams.weights.delta import Delta, difference, encode, layout_of
from streams.weights.tensors import parts

State = Mapping[str, StoredTensor]

_NAMES: Final = {
    torch.bfloat16: ("BF16", torch.uint16),
    torch.float16: ("F16", torch.uint16),
    torch.float32: ("F32", torch.uint32),
}


@dataclass(frozen=True, slots=True)
class Publication:
    """One version as files. `digest` and `base_digest` are of all tensors; the base's are None for a full one."""

    version: int
    kind: Literal["full", "delta"]
    paths: tuple[Path, ...]
    tensors: int
    digest: str
    base_version: int | None = None
    base_digest: str | None = None


class Wire:
    """Remembers the version published last, whole and as bits: two bytes an element on rank 0's host."""

    def __init__(self, settings: PublishSettings, max_file_bytes: int) -> None:
        self._settings = settings
        self._max_file_bytes = max_file_bytes
        self._state: State = {}
        self._version = -1
        self._digest = ""
        self._deltas = 0

    @property
    def version(self) -> int:
        """The version written last, -1 before the first."""
        return self._version

    def write(self, tensors: Mapping[str, Tensor], version: int, directory: Path) -> Publication:
        """Files of `version` below `directory`, and what they are. ModelError: a weight that FP8 cannot hold."""
        state = as_stored(tensors)
        if self._settings.wire == "fp8":
            try:
                state = to_fp8(state)
            except WeightsError as error:
                raise ModelError(f"weights {version} cannot be published in fp8: {error}") from error
        digest = state_digest({name: tensor_digest(tensor) for name, tensor in state.items()})
        published = self._delta(state, version, digest, directory)
        self._deltas = 0 if published is None else self._deltas + 1
        self._state, self._version, self._digest = state, version, digest
        return published or self.anchor(directory)

    def anchor(self, directory: Path) -> Publication:
        """The version written last, in full: for a producer that cannot use the delta it was published as."""
        paths = write_state(self._state, directory, self._max_file_bytes)
        return Publication(self._version, "full", tuple(paths), len(self._state), self._digest)

    def _delta(self, state: State, version: int, digest: str, directory: Path) -> Publication | None:
        settings = self._settings
        if settings.kind != "delta" or not 0 <= self._version < version or self._deltas + 1 >= settings.anchor_every:
            return None
        patches = difference(self._state, state)
        if patches is None:
            return None
        layout = layout_of(state)
        files = [
            encode(Delta(version, self._version, self._digest, among), layout)
            for part in parts(state, self._max_file_bytes)
            if (among := {name: patches[name] for name in part if name in patches})
        ]
        if sum(map(len, files)) >= sum(tensor.nbytes for tensor in state.values()):
            return None
        paths = []
        for index, data in enumerate(files, start=1):
            paths.append(directory / f"delta-{index:05}-of-{len(files):05}.bin")
            paths[-1].write_bytes(data)
        return Publication(version, "delta", tuple(paths), len(patches), digest, self._version, self._digest)


def as_stored(tensors: Mapping[str, Tensor]) -> dict[str, StoredTensor]:
    """Tensors of any device as bits on the host. ModelError: a dtype that weights are not published in."""
    stored = {}
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES:
            raise ModelError(f"tensor {name} is {tensor.dtype}, and weights are published as bf16, f16 or f32")
        dtype, bits = _NAMES[tensor.dtype]
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(bits).numpy()
        stored[name] = StoredTensor(dtype, tuple(tensor.shape), flat)
    return stored


def write_files(tensors: Mapping[str, Tensor], directory: Path, max_bytes: int) -> list[Path]:
    """safetensors files of about `max_bytes` each at most, tensors in the order of their names: the same bytes for the
    same weights."""
    return write_state(as_stored(tensors), directory, max_bytes)


def write_state(state: State, directory: Path, max_bytes: int) -> list[Path]:
    """See `write_files`."""
    portions = list(parts(state, max_bytes))
    paths = []
    for index, part in enumerate(portions, start=1):
        name = "model.safetensors" if len(portions) == 1 else f"model-{index:05}-of-{len(portions):05}.safetensors"
        write_file(directory / name, part)
        paths.append(directory / name)
    return paths
