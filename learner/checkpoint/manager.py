"""Atomic checkpoints: model, optimizer, random generators, step and the position on the log.

    checkpoints/step-12.tmp/ rank-0.safetensors rank-1.safetensors     every rank writes and fsyncs its own chunks
    checkpoints/step-12/     … manifest.json                          rank 0: digests, fsync, then the rename

    staged = checkpoints.stage(trainer.state())     # in the training thread, which is blocked for this copy alone
    checkpoints.save(position, staged)              # in the background thread, on the process group `background`

This is torch.distributed.checkpoint with its own storage (`learner.checkpoint.storage`). `async_save` does the same two
halves, but its threads keep a failing process alive until a collective with a dead rank has timed out.
"""

import hashlib
import logging
import re
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import save

from learner.checkpoint.manifest import (
    FORMAT,
    Manifest,
    Position,
    ShardFile,
    TensorForm,
    check_file,
    read_manifest,
    sync,
    write_manifest,
)
from learner.checkpoint.retention import Retention
from learner.checkpoint.storage import Planner, Reader, Writer
from learner.errors import CheckpointError, ForeignCheckpointError
from learner.ranks.group import RankGroup
from streams.faults import reach

logger = logging.getLogger(__name__)

_NAME: Final = re.compile(r"step-(\d+)")
_RNG: Final = "rng"

State = Mapping[str, Tensor]
"""Tensors by name; of a DTensor, this rank holds its shards."""


class CheckpointManager:
    """The checkpoints of one run in `directory`. Every method but `stage` is collective.

    Where one rank fails, all raise CheckpointError, so that none relies on a checkpoint that does not exist.
    """

    def __init__(self, directory: Path, model: str, retention: Retention, ranks: RankGroup) -> None:
        self._directory = directory
        self._model = model
        self._retention = retention
        self._ranks = ranks
        self._damaged: set[int] = set()
        cuda = ranks.device.type == "cuda"
        self._stager = DefaultStager(StagingOptions(cuda, False, False, cuda))

    def stage(self, state: State) -> State:
        """A copy of `state` on the CPU, with this rank's random generator. Its memory is reused by the next call, which
        must not come before `save` of this copy has returned."""
        staged: Any = self._stager.stage(dict(state))
        return {**staged, f"{_RNG}.{self._ranks.rank}": torch.get_rng_state()}

    def save(self, position: Position, staged: State) -> None:
        """Write `staged` as `step-N`, then delete what `retention` does not keep. Blocking; CheckpointError."""
        final = self._directory / f"step-{position.step}"
        writer = Writer(
            final.with_suffix(".tmp"),
            self._ranks.rank,
            self._all_ranks,
            self._clear,
            partial(self._complete, final, position),
        )
        planner = Planner(self._ranks.rank, self._exchange)
        # DCP's own collectives exchange pickles; planner and writer exchange MessagePack and JSON instead.
        save(
            dict(staged),
            storage_writer=writer,
            planner=planner,
            process_group=self._ranks.background,
            use_collectives=False,
        )

    def newest(self) -> tuple[Path, Manifest] | None:
        """The newest intact checkpoint, or None; each rank verifies the digests of its share of the files.

        CheckpointError: there are checkpoints, and none is intact. ForeignCheckpointError: of another run or model.
        """
        faults = []
        for name in self._all_ranks(self._candidates)[0].decode().split():
            path = self._directory / name
            reports = [msgspec.json.decode(part, type=_Verification) for part in self._exchange(self._verify(path))]
            fault = next((report.fault for report in reports if report.fault), None)
            if fault is None:
                # The manifest as rank 0 verified it, not as the file is by now.
                manifest = reports[0].manifest
                assert manifest is not None
                _require_own(path, manifest, self._model)
                return path, manifest
            logger.warning("skips a damaged checkpoint and tries the one before it: %s", fault)
            faults.append(fault)
            self._damaged.add(_step(path))
        if faults:
            raise CheckpointError(f"no checkpoint is intact: {'; '.join(faults)}")
        return None

    def load(self, path: Path, manifest: Manifest, state: State) -> None:
        """Fill `state` in place, and this rank's random generator (rank 0's where the checkpoint has none for it).

        CheckpointError: names or shapes differ, or a file cannot be read.
        """
        rng = f"{_RNG}.{self._ranks.rank}"
        if rng not in manifest.tensors:
            rng = f"{_RNG}.0"
        generator = torch.empty(manifest.tensors[rng].shape, dtype=torch.uint8)
        self._all_ranks(lambda: _fill(path, manifest, {**state, rng: generator}))
        torch.set_rng_state(generator)

    def _exchange(self, data: bytes) -> list[bytes]:
        return self._ranks.exchange(data, self._ranks.background)

    def _all_ranks(self, work: Callable[[], bytes]) -> list[bytes]:
        """Run `work` on every rank and exchange the results; all raise the failure of the lowest failing rank."""
        try:
            outcome = b"+" + work()
        except (OSError, SafetensorError, CheckpointError) as error:
            outcome = b"-" + _sentence(error, self._directory).encode()
        outcomes = self._exchange(outcome)
        for rank, each in enumerate(outcomes):
            if each.startswith(b"-"):
                raise CheckpointError(f"rank {rank}: {each[1:].decode()}")
        return [each[1:] for each in outcomes]

    def _clear(self, unfinished: Path) -> bytes:
        if self._ranks.rank == 0:
            for other in self._directory.glob("step-*.tmp"):
                shutil.rmtree(other)
            unfinished.mkdir(parents=True)
        return b""

    def _complete(
        self, final: Path, position: Position, written: Path, metadata: Metadata, files: tuple[ShardFile, ...]
    ) -> bytes:
        if self._ranks.rank == 0:
            reach("checkpoint.shards")
            manifest = Manifest(FORMAT, self._model, position, _forms(metadata), files)
            write_manifest(written, manifest)
            sync(written)
            if final.exists():
                shutil.rmtree(final)
            reach("checkpoint.manifest")
            written.rename(final)
            reach("checkpoint.renamed")
            sync(self._directory)
            steps = {_step(path): path for path in _complete_checkpoints(self._directory)}
            self._damaged.discard(position.step)
            for step in self._retention.dropped(list(steps), self._damaged):
                shutil.rmtree(steps[step])
        return b""

    def _candidates(self) -> bytes:
        """Names of the complete checkpoints, newest first, as rank 0 sees them; empty on other ranks."""
        found = _complete_checkpoints(self._directory) if self._ranks.rank == 0 else []
        return " ".join(path.name for path in found).encode()

    def _verify(self, path: Path) -> bytes:
        """Verify this rank's share of a checkpoint's files; the encoded `_Verification`."""
        manifest = None
        try:
            manifest = read_manifest(path)
            for file in manifest.files[self._ranks.rank :: self._ranks.world]:
                check_file(path, file)
        except (CheckpointError, OSError) as error:
            return msgspec.json.encode(_Verification(manifest, str(error)))
        return msgspec.json.encode(_Verification(manifest, None))


class _Verification(msgspec.Struct, frozen=True):
    manifest: Manifest | None
    fault: str | None


def fingerprint(stored: Mapping[str, tuple[int, ...]]) -> str:
    """The model's identity in checkpoints: a digest of its tensors' names and shapes, whatever its directory."""
    return hashlib.blake2b(msgspec.json.encode(sorted(stored.items())), digest_size=8).hexdigest()


def refuse_foreign(directory: Path, model: str) -> None:
    """ForeignCheckpointError: the newest checkpoint with a readable manifest is of another run or model.

    Each rank checks it before the rendezvous. Found afterwards, the first rank to end of it would be reported by the
    others as a failed rank, which hides the user's mistake.
    """
    for path in _complete_checkpoints(directory):
        try:
            manifest = read_manifest(path)
        except (CheckpointError, OSError):
            # Whether one is intact is decided later, by all ranks together.
            continue
        _require_own(path, manifest, model)
        return


def _require_own(path: Path, manifest: Manifest, model: str) -> None:
    if manifest.model != model:
        raise ForeignCheckpointError(
            f"checkpoint {path} is of run and model {manifest.model} and not of {model}: point learner.model "
            "to the model it was trained from, or use a run directory of its own"
        )


def _fill(path: Path, manifest: Manifest, state: dict[str, Tensor]) -> bytes:
    ours = {name: tuple(tensor.shape) for name, tensor in state.items()}
    theirs = {
        name: form.shape for name, form in manifest.tensors.items() if name in ours or not name.startswith(f"{_RNG}.")
    }
    if ours != theirs:
        differing = sorted(name for name, _ in set(ours.items()) ^ set(theirs.items()))
        raise CheckpointError(
            f"checkpoint {path} and the model differ in {len(differing)} tensors, among them {differing[0]}"
        )
    for name, tensor in state.items():
        if manifest.elements(name) != tensor.numel():
            raise CheckpointError(
                f"checkpoint {path} holds {manifest.elements(name)} of the {tensor.numel()} elements of {name}"
            )
    reader = Reader(path, manifest)
    planner: Any = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    # What dcp.load does, without its collectives, which exchange pickles.
    planner.set_up_planner(state, reader.read_metadata(), is_coordinator=True)
    reader.read_data(planner.create_local_plan(), planner).wait()
    return b""


def _forms(metadata: Metadata) -> dict[str, TensorForm]:
    forms = {}
    for name, stored in metadata.state_dict_metadata.items():
        assert isinstance(stored, TensorStorageMetadata)
        forms[name] = TensorForm(tuple(stored.size), str(stored.properties.dtype))
    return forms


def _complete_checkpoints(directory: Path) -> list[Path]:
    """Complete checkpoints, newest first; one that is still being written ends in `.tmp`."""
    if not directory.is_dir():
        return []
    return sorted((path for path in directory.iterdir() if _NAME.fullmatch(path.name)), key=_step, reverse=True)


def _step(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def _sentence(error: Exception, directory: Path) -> str:
    if isinstance(error, CheckpointError):
        return str(error)
    free = shutil.disk_usage(directory).free if directory.exists() else 0
    return f"checkpoint in {directory} was not written ({free // 2**20} MiB free there): {error}"
