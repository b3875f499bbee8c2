"""A checkpoint's manifest: JSON under its own digest, written last.

torch.distributed.checkpoint keeps its metadata as a pickle, and loading an untrusted pickle runs a program.
"""

import hashlib
import math
import os
from pathlib import Path
from typing import Annotated, Final

import msgspec
import torch
from torch.distributed.checkpoint.metadata import (
    STORAGE_TYPES,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from learner.errors import CheckpointError

MANIFEST: Final = "manifest.json"
FORMAT: Final = 2


class Position(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where training stands.

    Attributes:
        step: batches trained, which is the weights version.
        updates: optimizer updates, by whose count Adam corrects the bias of its moments.
        next_batch: number of the next batch.
        offset: offset on `batches` at or before that batch.
    """

    step: int = 0
    updates: int = 0
    next_batch: int = 0
    offset: int = 0


class Chunk(msgspec.Struct, frozen=True):
    """A box of a tensor: its offset and its size in each dimension."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


class TensorForm(msgspec.Struct, frozen=True):
    """A whole tensor's shape, and its dtype by torch's name, as "torch.float32"."""

    shape: tuple[int, ...]
    dtype: str


class ShardFile(msgspec.Struct, frozen=True):
    """One rank's file: its size in bytes, its blake2b-256 digest, and the chunk that it holds of each tensor."""

    name: str
    size: int
    digest: str
    chunks: dict[str, Chunk]


class Manifest(msgspec.Struct, frozen=True):
    """All that a checkpoint holds; `model` identifies the run and the model that the tensors belong to."""

    format: Annotated[int, msgspec.Meta(ge=FORMAT, le=FORMAT)]
    model: str
    position: Position
    tensors: dict[str, TensorForm]
    files: tuple[ShardFile, ...]

    def metadata(self) -> Metadata:
        """The same as torch.distributed.checkpoint's metadata; `storage_data` maps each chunk to its file."""
        chunks: dict[str, list[ChunkStorageMetadata]] = {name: [] for name in self.tensors}
        places: dict[MetadataIndex, str] = {}
        for file in self.files:
            for name, chunk in file.chunks.items():
                chunks[name].append(ChunkStorageMetadata(torch.Size(chunk.offsets), torch.Size(chunk.sizes)))
                places[MetadataIndex(name, chunk.offsets)] = file.name
        stored: dict[str, STORAGE_TYPES] = {
            name: TensorStorageMetadata(TensorProperties(dtype_of(form.dtype)), torch.Size(form.shape), chunks[name])
            for name, form in self.tensors.items()
        }
        return Metadata(stored, storage_data=places)

    def elements(self, name: str) -> int:
        """Number of elements that all chunks of a tensor hold together."""
        return sum(math.prod(file.chunks[name].sizes) for file in self.files if name in file.chunks)


class _Sealed(msgspec.Struct, frozen=True):
    digest: str
    checkpoint: msgspec.Raw


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write and fsync the manifest. OSError."""
    body = msgspec.json.encode(manifest)
    path = directory / MANIFEST
    path.write_bytes(msgspec.json.encode(_Sealed(_digest(body), msgspec.Raw(body))))
    sync(path)


def read_manifest(directory: Path) -> Manifest:
    """The manifest of one checkpoint. CheckpointError: missing, damaged, or of another format."""
    try:
        sealed = msgspec.json.decode((directory / MANIFEST).read_bytes(), type=_Sealed)
        if _digest(bytes(sealed.checkpoint)) != sealed.digest:
            raise CheckpointError(f"checkpoint {directory} has a {MANIFEST} that differs from its digest")
        return msgspec.json.decode(sealed.checkpoint, type=Manifest)
    except (OSError, msgspec.DecodeError) as error:
        raise CheckpointError(f"checkpoint {directory} has no readable {MANIFEST}: {error}") from error


def check_file(directory: Path, file: ShardFile) -> None:
    """CheckpointError: the file is missing, has another size, or differs from its digest."""
    path = directory / file.name
    if not path.is_file():
        raise CheckpointError(f"checkpoint file {path} is missing")
    if (size := path.stat().st_size) != file.size:
        raise CheckpointError(f"checkpoint file {path} has {size} bytes and not {file.size}")
    if digest_of(path) != file.digest:
        raise CheckpointError(f"checkpoint file {path} differs from its digest {file.digest[:16]}…")


def digest_of(path: Path) -> str:
    """blake2b-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()


def dtype_of(name: str) -> torch.dtype:
    """The dtype by torch's own name, as "torch.float32". CheckpointError: there is no such dtype."""
    dtype = getattr(torch, name.removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype):
        raise CheckpointError(f"checkpoint names a dtype {name!r} that torch does not have")
    return dtype


def sync(path: Path) -> None:
    """fsync a file or a directory. OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(body: bytes) -> str:
    return hashlib.blake2b(body, digest_size=32).hexdigest()
