"""What ranks make of checkpoints: resumed, damaged, of another model, on a full disk."""

import logging
import os
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.distributed.device_mesh import init_device_mesh

from learner.checkpoint.manager import CheckpointManager
from learner.checkpoint.manifest import Position
from learner.checkpoint.retention import Retention
from learner.errors import CheckpointError
from learner.ranks.group import RankGroup
from learner.training.step import Trainer
from tests.learner.rank_trainer import STEPS, digest, leave_behind, share, trainer_of


def resume(ranks: RankGroup, directory: Path) -> Any:
    """Two steps, a checkpoint, and the other two in a new trainer that was filled from it."""
    checkpoints = CheckpointManager(directory / f"resume-{ranks.world}", "m", Retention(1), ranks)
    first = trainer_of(ranks, directory)
    for seed in range(2):
        first.train(share(ranks, seed), seed)
    position, staged = Position(2, first.updates, 2, 17), checkpoints.stage(first.state())
    # The service trains on while the copy is written.
    first.train(share(ranks, 2), 2)
    checkpoints.save(position, staged)
    second = trainer_of(ranks, directory)
    position = restore(checkpoints, second)
    for seed in range(2, STEPS):
        second.train(share(ranks, seed), seed)
    return {"digest": digest(second.policy, ranks.rank), "position": list(vars_of(position))}


def copies(ranks: RankGroup, directory: Path) -> Any:
    """Half of the steps with the model held twice, a checkpoint of that, and the other half after it was read."""
    mesh = init_device_mesh("cpu", (2, ranks.world // 2), mesh_dim_names=("copy", "shard"))
    held = replace(ranks, mesh=mesh)
    checkpoints = CheckpointManager(directory / "copies", "m", Retention(1), held)
    first = trainer_of(held, directory, parallel={"dp_replicate": 2})
    norms = [first.train(share(held, seed), seed).metrics["grad_norm"] for seed in range(2)]
    checkpoints.save(Position(2, first.updates, 2, 17), checkpoints.stage(first.state()))
    second = trainer_of(held, directory, parallel={"dp_replicate": 2})
    restore(checkpoints, second)
    norms += [second.train(share(held, seed), seed).metrics["grad_norm"] for seed in range(2, STEPS)]
    leave_behind(second, held, directory / "copies.safetensors")
    written = sum(path.stat().st_size for path in (directory / "copies").glob("step-2/*.safetensors"))
    return {"replicas": held.replicas, "norms": norms, "written": written}


def resume_from(left_by: int, ranks: RankGroup, directory: Path) -> Any:
    """What `left_by` ranks left after two steps, read back by this number of ranks, which does the other two."""
    checkpoints = CheckpointManager(directory / f"resume-{left_by}", "m", Retention(1), ranks)
    trainer = trainer_of(ranks, directory)
    position = restore(checkpoints, trainer)
    for seed in range(2, STEPS):
        trainer.train(share(ranks, seed), seed)
    leave_behind(trainer, ranks, directory / f"from-{left_by}-by-{ranks.world}.safetensors")
    return {"position": list(vars_of(position))}


def restore(checkpoints: CheckpointManager, trainer: Trainer) -> Position:
    found = checkpoints.newest()
    assert found is not None
    path, manifest = found
    checkpoints.load(path, manifest, trainer.state())
    trainer.restored(manifest.position.updates)
    return manifest.position


def vars_of(position: Position) -> tuple[int, ...]:
    return position.step, position.updates, position.next_batch, position.offset


def damage(ranks: RankGroup, directory: Path) -> Any:
    """The newest checkpoint has a wrong byte, and an unfinished one lies beside it: the one before is taken."""
    root = directory / f"damage-{ranks.world}"
    checkpoints = CheckpointManager(root, "m", Retention(2), ranks)
    trainer = trainer_of(ranks, directory)
    for step in (1, 2, 3):
        checkpoints.save(Position(step, step, step, step), checkpoints.stage(trainer.state()))
    kept = sorted(path.name for path in root.iterdir())
    if ranks.rank == 0:
        path = root / "step-3" / "rank-0.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        (root / "step-9.tmp").mkdir()
    ranks.exchange(b"damaged")
    found = checkpoints.newest()
    assert found is not None
    if ranks.rank == 0:
        (found[0] / "manifest.json").write_text("{")
    ranks.exchange(b"damaged")
    try:
        checkpoints.newest()
        complaint = ""
    except CheckpointError as error:
        complaint = str(error)
    return {"kept": kept, "taken": found[0].name, "complaint": complaint}


def damages(ranks: RankGroup, directory: Path) -> Any:
    """Each way of damaging the newest checkpoint: which one is taken then, and what is logged."""
    root = directory / f"damages-{ranks.world}"
    trainer = trainer_of(ranks, directory)
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("learner.checkpoint.manager").addHandler(handler)
    results = {}
    for name, damage_file in DAMAGES.items():
        checkpoints = CheckpointManager(root / name, "m", Retention(2), ranks)
        for step in (1, 2):
            checkpoints.save(Position(step, step, step, step), checkpoints.stage(trainer.state()))
        ranks.exchange(b"saved")
        if ranks.rank == 0:
            damage_file(root / name / "step-2")
        ranks.exchange(b"damaged")
        lines.clear()
        found = checkpoints.newest()
        results[name] = (found[0].name if found else None, list(lines))
        # Training resumes from the one before, reaches the same step, and writes it again.
        checkpoints.save(Position(2, 2, 2, 2), checkpoints.stage(trainer.state()))
        again = checkpoints.newest()
        results[f"{name}, rewritten"] = (again[0].name if again else None, [])
    return results


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "bit flip": lambda path: flip(path / "rank-1.safetensors"),
    "truncation": lambda path: os.truncate(path / "rank-1.safetensors", 1000),
    "missing file": lambda path: (path / "rank-1.safetensors").unlink(),
    "bit flip in the manifest": lambda path: flip(path / "manifest.json"),
    "missing manifest": lambda path: (path / "manifest.json").unlink(),
}


def other_model(ranks: RankGroup, directory: Path) -> Any:
    """The error of reading a checkpoint of another model."""
    try:
        CheckpointManager(directory / f"resume-{ranks.world}", "another", Retention(1), ranks).newest()
    except CheckpointError as error:
        return str(error)


def full_disk(ranks: RankGroup, directory: Path) -> Any:
    """The last rank's file cannot be written: the checkpoint exists for no rank."""
    root = directory / f"full-{ranks.world}"
    checkpoints = CheckpointManager(root, "m", Retention(2), ranks)
    trainer = trainer_of(ranks, directory)
    checkpoints.save(Position(1, 1, 1, 1), checkpoints.stage(trainer.state()))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if ranks.rank == ranks.world - 1:
        # Writing past this many bytes fails with an OSError, as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        checkpoints.save(Position(2, 2, 2, 2), checkpoints.stage(trainer.state()))
        complaint = ""
    except CheckpointError as error:
        complaint = str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    found = checkpoints.newest()
    return {"complaint": complaint, "newest": found[0].name if found else None}
