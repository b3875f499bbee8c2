"""From publications to the files of one version: anchors fetched, deltas applied, every digest checked.

Works file by file, so that no more than one file of weights is in memory beside the deltas. Blocking: give it a thread.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from schemas import WeightsPublished
from streams.blobs.digests import Hasher, short
from streams.blobs.store import BlobStore
from streams.weights import delta as deltas
from streams.weights.errors import WeightsError
from streams.weights.tensors import StoredTensor, read_file, state_digest, tensor_digest, write_file

_CHUNK_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class HeldFile:
    """A whole safetensors file; `digest` (`streams.blobs.digests`) of its bytes, or None where nobody announced one."""

    path: Path
    digest: str | None


@dataclass(frozen=True, slots=True)
class Held:
    """A version in `directory`, complete and verified; `digest` is its state's, None from older learners."""

    version: int
    digest: str | None
    directory: Path
    files: tuple[HeldFile, ...]

    def remove(self) -> None:
        """Delete it."""
        shutil.rmtree(self.directory, ignore_errors=True)


def fetch_anchor(blobs: BlobStore, event: WeightsPublished, directory: Path) -> Held:
    """The files of a full publication, verified. BlobError: one is missing or corrupt. OSError: store or disk."""
    files = []
    try:
        for number, file in enumerate(event.files):
            # The name comes from another process: it must never become a path outside the directory.
            path = blobs.fetch_to(file.blob, directory / f"{number}-{Path(file.name).name}")
            files.append(HeldFile(path, file.blob.digest if file.blob.codec == "none" else None))
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    return Held(event.version, event.digest, directory, tuple(files))


def apply_deltas(blobs: BlobStore, held: Held, events: Sequence[WeightsPublished], directory: Path) -> Held:
    """`held` with the deltas `events` applied in order, in files of its own below `directory`.

    WeightsError: a delta on another base, or tensors that are not what the last one announced; nothing is left then.
    BlobError, OSError: see `fetch_anchor`.
    """
    patches, version, digest = _gathered(blobs, held, events)
    directory.mkdir(parents=True, exist_ok=True)
    try:
        files: list[HeldFile] = []
        digests: dict[str, bytes] = {}
        for source in held.files:
            tensors = _patched(read_file(source.path), patches)
            target = directory / source.path.name
            write_file(target, tensors)
            # Digests are of what the file says now, the tensors that no delta touched included.
            written = read_file(target)
            digests |= {name: tensor_digest(tensor) for name, tensor in written.items()}
            files.append(HeldFile(target, file_digest(target)))
        _check(version, digest, patches, digests)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    return Held(version, digest, directory, tuple(files))


def file_digest(path: Path) -> str:
    """Of the file's bytes, see `streams.blobs.digests`."""
    hasher = Hasher()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            hasher.update(chunk)
    return hasher.digest()


def _gathered(
    blobs: BlobStore, held: Held, events: Sequence[WeightsPublished]
) -> tuple[dict[str, list[deltas.Patch]], int, str | None]:
    """Every tensor's patches in order, and what the last delta leads to."""
    version, digest = held.version, held.digest
    patches: dict[str, list[deltas.Patch]] = {}
    # A delta changes no name, dtype or shape, so that the held files' layout is every delta's.
    layout = {name: (t.dtype, t.shape) for file in held.files for name, t in read_file(file.path).items()}
    for event in events:
        if digest is None or (event.base_version, event.base_digest) != (version, digest):
            raise WeightsError(
                f"weights {event.version} are a delta on weights {event.base_version} ({_short(event.base_digest)}), "
                f"and what is held is {version} ({_short(digest)})"
            )
        for file in event.files:
            delta = deltas.decode(blobs.get(file.blob), layout)
            said = (delta.version, delta.base_version, delta.base_digest)
            if said != (event.version, event.base_version, event.base_digest):
                raise WeightsError(f"file {file.name!r} of weights {event.version} is of {said[0]} on {said[1]}")
            for name, patch in delta.patches.items():
                patches.setdefault(name, []).append(patch)
        version, digest = event.version, event.digest
    return patches, version, digest


def _patched(
    tensors: Mapping[str, StoredTensor], patches: Mapping[str, Sequence[deltas.Patch]]
) -> dict[str, StoredTensor]:
    patched = {}
    for name, tensor in tensors.items():
        for patch in patches.get(name, ()):
            tensor = deltas.applied(tensor, patch)
        patched[name] = tensor
    return patched


def _check(
    version: int, digest: str | None, patches: Mapping[str, Sequence[deltas.Patch]], digests: Mapping[str, bytes]
) -> None:
    for name, several in patches.items():
        if digests[name][: deltas.CHECK_BYTES] != several[-1].check:
            raise WeightsError(f"tensor {name!r} of weights {version} differs from its digest after the delta")
    if state_digest(digests) != digest:
        raise WeightsError(f"weights {version} differ from their digest in a tensor that the delta does not name")


def _short(digest: str | None) -> str:
    return "no digest" if digest is None else f"digest {short(digest)}…"
