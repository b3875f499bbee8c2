"""torch.distributed.checkpoint's planner and storage, without its pickles.

DCP plans what each rank writes (replicas once, DTensors of any mesh) and where each rank finds what it reads, for any
number of ranks. Unlike its own file system storage, this one exchanges plans as MessagePack and stores tensors as
safetensors where DCP pickles, digests and fsyncs every file, and reports one rank's failure to all ranks.
"""

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from learner.checkpoint.manifest import Chunk, Manifest, ShardFile, digest_of, dtype_of, sync

Exchange = Callable[[bytes], list[bytes]]
"""Every rank's bytes, in rank order."""

AllRanks = Callable[[Callable[[], bytes]], list[bytes]]
"""Runs a function on every rank and exchanges the results; where one rank fails, all raise CheckpointError."""


class _Item(msgspec.Struct, frozen=True):
    """DCP's WriteItem in the form that ranks exchange."""

    name: str
    chunk: Chunk
    shape: tuple[int, ...]
    dtype: str
    sharded: bool


class Planner(DefaultSavePlanner):
    """DCP's own planner, without a coordinator: every rank gathers all plans and makes the same global plan of them."""

    def __init__(self, rank: int, exchange: Exchange) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._rank = rank
        self._exchange = exchange

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        """Given this rank's local plan alone, this rank's part of the global plan, and the global metadata."""
        own = [_item(item) for item in all_plans[0].items]
        encoded = self._exchange(msgspec.msgpack.encode(own))
        plans = [
            SavePlan([_write_item(item) for item in msgspec.msgpack.decode(part, type=list[_Item])]) for part in encoded
        ]
        planned, metadata = super().create_global_plan(plans)
        return [planned[self._rank]], metadata


class Writer(StorageWriter):
    """Writes this rank's file `rank-N.safetensors` into `directory`.

    `prepare(directory)` is called on every rank before any writes, and `complete(directory, metadata, files)` on every
    rank once all have written.
    """

    def __init__(
        self,
        directory: Path,
        rank: int,
        all_ranks: AllRanks,
        prepare: Callable[[Path], bytes],
        complete: Callable[[Path, Metadata, tuple[ShardFile, ...]], bytes],
    ) -> None:
        self._directory = directory
        self._path = directory / f"rank-{rank}.safetensors"
        self._all_ranks = all_ranks
        self._prepare = prepare
        self._complete = complete
        self._written: tuple[ShardFile, ...] = ()

    def reset(self, checkpoint_id: str | PathLike[str] | None = None) -> None:
        """Does nothing: a writer is for one checkpoint."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Call `prepare` on every rank. CheckpointError: it failed on one of them."""
        self._all_ranks(lambda: self._prepare(self._directory))

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """The plan, unchanged."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """The plans, unchanged."""
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write and fsync this rank's file. Blocking and collective; CheckpointError: a rank could not."""
        encoded = self._all_ranks(lambda: msgspec.json.encode(self._write(plan, planner)))
        self._written = tuple(msgspec.json.decode(part, type=ShardFile) for part in encoded)
        results: Future[list[WriteResult]] = Future()
        results.set_result([])
        return results

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Call `complete` on every rank. CheckpointError: it failed on one of them."""
        self._all_ranks(lambda: self._complete(self._directory, metadata, self._written))

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | PathLike[str]) -> bool:
        """False: `CheckpointManager` makes this object, and DCP never finds it by an id."""
        return False

    def _write(self, plan: SavePlan, planner: SavePlanner) -> ShardFile:
        tensors: dict[str, Tensor] = {}
        chunks: dict[str, Chunk] = {}
        for item in plan.items:
            tensor = planner.resolve_data(item)
            assert isinstance(tensor, Tensor)
            if tensor.numel():
                tensors[item.index.fqn] = tensor.detach().contiguous()
                chunks[item.index.fqn] = _item(item).chunk
        try:
            save_file(tensors, self._path)
            sync(self._path)
        except (OSError, SafetensorError):
            self._path.unlink(missing_ok=True)
            raise
        return ShardFile(self._path.name, self._path.stat().st_size, digest_of(self._path), chunks)


class Reader(StorageReader):
    """Reads what a plan asks for from the files of a verified checkpoint."""

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self._directory = directory
        self._metadata = manifest.metadata()

    def reset(self, checkpoint_id: str | PathLike[str] | None = None) -> None:
        """Does nothing: a reader is for one checkpoint."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The metadata of the verified manifest."""
        return self._metadata

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Does nothing."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """The plan, unchanged."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """The plans, unchanged."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Blocking. OSError, SafetensorError: a file cannot be read."""
        by_file: dict[str, list[ReadItem]] = {}
        for item in plan.items:
            by_file.setdefault(self._metadata.storage_data[item.storage_index], []).append(item)
        for name, items in by_file.items():
            with safe_open(self._directory / name, framework="pt") as opened:
                for item in items:
                    box = tuple(
                        slice(first, first + count)
                        for first, count in zip(item.storage_offsets, item.lengths, strict=True)
                    )
                    target = planner.resolve_tensor(item).detach()
                    target.copy_(opened.get_slice(item.storage_index.fqn)[box])
                    planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | PathLike[str]) -> bool:
        """False: `CheckpointManager` makes this object, and DCP never finds it by an id."""
        return False


def _item(item: WriteItem) -> _Item:
    data = item.tensor_data
    assert data is not None, f"{item.index.fqn} is no tensor"
    chunk = Chunk(tuple(data.chunk.offsets), tuple(data.chunk.sizes))
    sharded = item.type is WriteItemType.SHARD
    return _Item(item.index.fqn, chunk, tuple(data.size), str(data.properties.dtype), sharded)


def _write_item(item: _Item) -> WriteItem:
    chunk = ChunkStorageMetadata(torch.Size(item.chunk.offsets), torch.Size(item.chunk.sizes))
    return WriteItem(
        index=MetadataIndex(item.name, item.chunk.offsets),
        type=WriteItemType.SHARD if item.sharded else WriteItemType.TENSOR,
        tensor_data=TensorWriteData(chunk, TensorProperties(dtype_of(item.dtype)), torch.Size(item.shape)),
    )
