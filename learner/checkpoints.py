"""Atomic checkpoints: model, optimizer, RNG, step and the place on the log, whole or not at all.

    checkpoints/step-12.tmp/ rank-0.safetensors rank-1.safetensors     every rank writes and fsyncs its own shards
    checkpoints/step-12/     … manifest.json                          rank 0: digests, fsync, then the rename

A file holds a rank's rows of every tensor, so that nothing is gathered; the manifest says which rows, so that another
number of ranks can read them. Plain safetensors and JSON: torch.distributed.checkpoint pickles its metadata, and an
untrusted pickle is a program.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from learner.distributed import Ranks
from learner.errors import CheckpointError
from streams.faults import reach

MANIFEST: Final = "manifest.json"
FORMAT: Final = 1
_NAME: Final = re.compile(r"step-(\d+)")
_RNG: Final = "rng"


class Position(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where training is: `step` batches done (= weights version), `updates` of the optimizer (it counts them to correct
    its moments' bias), the next batch number, and the offset on `batches` from which it is to be looked for."""

    step: int = 0
    updates: int = 0
    next_batch: int = 0
    offset: int = 0


class ShardFile(msgspec.Struct, frozen=True):
    """One rank's file: the first row it holds of each tensor (`rows` of them), and its digest."""

    name: str
    size: int
    digest: str
    rows: dict[str, tuple[int, int]]


class Manifest(msgspec.Struct, frozen=True):
    """Written last. `shapes`: the whole tensors' shapes; `model` names what they belong to."""

    format: Annotated[int, msgspec.Meta(ge=FORMAT, le=FORMAT)]
    model: str
    position: Position
    shapes: dict[str, tuple[int, ...]]
    files: tuple[ShardFile, ...]


@dataclass(frozen=True)
class Shard:
    """A rank's part of a tensor sharded by rows: rows `first` to `first + len(local)` of a tensor of `shape`."""

    local: Tensor
    first: int
    shape: tuple[int, ...]


class Checkpoints:
    """The checkpoints of one run in `directory`. Every method is called by all ranks, in the same order.

    A rank that fails makes all fail, with CheckpointError: nobody goes on believing in a checkpoint that is not there.
    """

    def __init__(self, directory: Path, model: str, keep: int, ranks: Ranks) -> None:
        self._directory = directory
        self._model = model
        self._keep = keep
        self._ranks = ranks

    def save(self, position: Position, shards: Mapping[str, Shard]) -> None:
        """Write `shards` (this rank's; it must not change meanwhile) as `step-N`, and delete what is beyond `keep`.

        Blocking; runs beside training in a thread of its own, on a process group of its own.
        """
        final = self._directory / f"step-{position.step}"
        partial = final.with_suffix(".tmp")
        self._all_ranks(lambda: self._clear(partial))
        written = self._all_ranks(lambda: self._write_shards(partial, shards))
        reach("checkpoint.shards")
        files = tuple(msgspec.json.decode(part, type=ShardFile) for part in written)
        shapes = {name: shard.shape for name, shard in shards.items()}
        manifest = Manifest(FORMAT, self._model, position, shapes, files)
        self._all_ranks(lambda: self._complete(partial, final, manifest))

    def newest(self) -> tuple[Path, Manifest] | None:
        """The newest checkpoint that is whole (rank 0 verifies every digest), or None.

        CheckpointError: there are checkpoints and none of them is whole, or they are of another model.
        """
        chosen = self._all_ranks(self._choose)[0]
        if not chosen:
            return None
        # The manifest that rank 0 verified, and not whatever the file holds by now.
        manifest = msgspec.json.decode(chosen, type=Manifest)
        return self._directory / f"step-{manifest.position.step}", manifest

    def load(self, path: Path, manifest: Manifest, shards: Mapping[str, Shard]) -> None:
        """Fill `shards` in place from whichever files hold their rows. CheckpointError: names or shapes differ."""
        self._all_ranks(lambda: _fill(path, manifest, shards))

    def rng_state(self, path: Path, manifest: Manifest) -> Tensor:
        """This rank's generator state; rank 0's where it had no predecessor."""
        rank = self._ranks.rank if self._ranks.rank < len(manifest.files) else 0
        with safe_open(path / manifest.files[rank].name, framework="pt") as opened:
            state: Tensor = opened.get_tensor(_RNG)
        return state

    def _all_ranks(self, work: Callable[[], bytes]) -> list[bytes]:
        """Run `work` on every rank and exchange what it returns; the first failure, by rank, is everyone's."""
        try:
            outcome = b"+" + work()
        except (OSError, SafetensorError, CheckpointError) as error:
            outcome = b"-" + _sentence(error, self._directory).encode()
        outcomes = self._ranks.exchange(outcome, self._ranks.background)
        for rank, said in enumerate(outcomes):
            if said.startswith(b"-"):
                raise CheckpointError(f"rank {rank}: {said[1:].decode()}")
        return [said[1:] for said in outcomes]

    def _clear(self, partial: Path) -> bytes:
        if self._ranks.rank == 0:
            for unfinished in self._directory.glob("step-*.tmp"):
                shutil.rmtree(unfinished)
            partial.mkdir(parents=True)
        return b""

    def _write_shards(self, partial: Path, shards: Mapping[str, Shard]) -> bytes:
        path = partial / f"rank-{self._ranks.rank}.safetensors"
        tensors = {name: shard.local.contiguous() for name, shard in shards.items() if shard.local.numel()}
        try:
            save_file({**tensors, _RNG: torch.get_rng_state()}, path)
            _sync(path)
        except (OSError, SafetensorError):
            path.unlink(missing_ok=True)
            raise
        rows = {name: (shards[name].first, len(shards[name].local)) for name in tensors}
        return msgspec.json.encode(ShardFile(path.name, path.stat().st_size, digest_of(path), rows))

    def _complete(self, partial: Path, final: Path, manifest: Manifest) -> bytes:
        if self._ranks.rank == 0:
            path = partial / MANIFEST
            path.write_bytes(msgspec.json.encode(manifest))
            _sync(path)
            _sync(partial)
            if final.exists():
                shutil.rmtree(final)
            reach("checkpoint.manifest")
            partial.rename(final)
            reach("checkpoint.renamed")
            _sync(self._directory)
            for old in _steps(self._directory)[self._keep :]:
                shutil.rmtree(old)
        return b""

    def _choose(self) -> bytes:
        if self._ranks.rank != 0:
            return b""
        found = _steps(self._directory)
        faults = []
        for path in found:
            try:
                return msgspec.json.encode(verify(path, self._model))
            except CheckpointError as error:
                faults.append(str(error))
        if faults:
            raise CheckpointError(f"no checkpoint is whole: {'; '.join(faults)}")
        return b""


def read_manifest(path: Path) -> Manifest:
    """The manifest of one checkpoint. CheckpointError: missing or malformed."""
    try:
        return msgspec.json.decode((path / MANIFEST).read_bytes(), type=Manifest)
    except (OSError, msgspec.DecodeError) as error:
        raise CheckpointError(f"checkpoint {path} has no readable {MANIFEST}: {error}") from error


def verify(path: Path, model: str) -> Manifest:
    """The manifest, after every file's size and digest were checked. CheckpointError names the first fault."""
    manifest = read_manifest(path)
    if manifest.model != model:
        raise CheckpointError(f"checkpoint {path} is of model {manifest.model} and not of {model}")
    for file in manifest.files:
        shard = path / file.name
        if not shard.is_file() or shard.stat().st_size != file.size:
            raise CheckpointError(f"checkpoint file {shard} is missing or has not its {file.size} bytes")
        if digest_of(shard) != file.digest:
            raise CheckpointError(f"checkpoint file {shard} differs from its digest {file.digest[:16]}…")
    return manifest


def fingerprint(stored: Mapping[str, tuple[int, ...]]) -> str:
    """The model's identity in checkpoints: the names and shapes of its tensors, wherever its directory lies."""
    return hashlib.blake2b(msgspec.json.encode(sorted(stored.items())), digest_size=8).hexdigest()


def digest_of(path: Path) -> str:
    """blake2b-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()


def _fill(path: Path, manifest: Manifest, shards: Mapping[str, Shard]) -> bytes:
    expected = {name: shard.shape for name, shard in shards.items()}
    if expected != manifest.shapes:
        differing = sorted(name for name, _ in set(expected.items()) ^ set(manifest.shapes.items()))
        raise CheckpointError(f"checkpoint {path} and the model differ in {len(differing)} tensors, as {differing[0]}")
    filled = dict.fromkeys(shards, 0)
    for file in manifest.files:
        with safe_open(path / file.name, framework="pt") as opened:
            for name, (first, count) in file.rows.items():
                shard = shards[name]
                low = max(first, shard.first)
                high = min(first + count, shard.first + len(shard.local))
                if low < high:
                    rows = opened.get_slice(name)[low - first : high - first]
                    shard.local[low - shard.first : high - shard.first].copy_(rows)
                    filled[name] += high - low
    for name, rows in filled.items():
        if rows != len(shards[name].local):
            raise CheckpointError(f"checkpoint {path} holds {rows} of {len(shards[name].local)} rows of {name}")
    return b""


def _steps(directory: Path) -> list[Path]:
    """Complete checkpoints, newest first; those still being written have another name."""
    if not directory.is_dir():
        return []
    numbered = [(int(match[1]), path) for path in directory.iterdir() if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(numbered, reverse=True)]


def _sentence(error: Exception, directory: Path) -> str:
    if isinstance(error, CheckpointError):
        return str(error)
    free = shutil.disk_usage(directory).free if directory.exists() else 0
    return f"checkpoint in {directory} was not written ({free // 2**20} MiB free there): {error}"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
