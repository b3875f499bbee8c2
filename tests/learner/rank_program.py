"""One rank of a real process group, for the tests: `rank_program.py RANK WORLD DIRECTORY SCENARIO...`.

Each scenario is a function of (ranks, directory) whose result, as JSON, is a line on standard output.
"""

import hashlib
import json
import logging
import os
import resource
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from learner.checkpoint.manager import CheckpointManager
from learner.checkpoint.manifest import Position
from learner.checkpoint.retention import Retention
from learner.errors import CheckpointError
from learner.model.packed_row import Rollout
from learner.model.policy import Policy, build_policy, build_reference, model_shape, stored_tensors
from learner.ranks.group import RankGroup, join_group, leave_group
from learner.ranks.lifeline import rendezvous
from learner.training.step import Trainer
from learner.weights import gather, stored_form, write_files
from schemas import Unanimous
from tests.learner.losses import loss_ranks
from tests.learner.model import fp8_ranks
from tests.learner.router_replay import family_ranks
from tests.learner.settings import learner_settings

SEQUENCES = 12
LAYERS, TOP_K, EXPERTS = 2, 2, 4
STEPS = 4


def trainer_of(ranks: RankGroup, directory: Path, **changes: Any) -> Trainer:
    """A trainer on the test's model, in the state it starts from."""
    settings = learner_settings(
        **{
            "model": str(directory / "model"),
            "ranks": ranks.world,
            "objective": "grpo",
            "updates_per_batch": 2,
            "learning_rate": 1e-2,
            **changes,
        }
    )
    policy = build_policy(directory / "model", settings, ranks.mesh)
    reference = build_reference(directory / "model", settings, ranks.mesh) if settings.kl_coefficient else None
    return Trainer(policy, model_shape(policy.model, None), settings, ranks, reference)


def sequences(seed: int) -> list[Rollout]:
    """The same sequences on every rank; every third has no routes, and some tokens of the others have none."""
    generator = torch.Generator().manual_seed(seed)
    rollouts = []
    for index in range(SEQUENCES):
        prompt, response = 2 + index % 3, 1 + (5 * index) % 7
        length = prompt + response
        tokens = torch.randint(3, 32, (length,), generator=generator)
        routes = torch.rand(length, LAYERS, EXPERTS, generator=generator).topk(TOP_K).indices.to(torch.int16)
        routes[-1] = -1
        rollouts.append(
            Rollout(
                rollout_id=f"r{index}",
                tokens=tokens,
                prompt_tokens=prompt,
                logp_rollout=-3.4 + 0.1 * torch.randn(response, generator=generator),
                routes=None if index % 3 == 0 else routes,
                advantage=float(torch.randn((), generator=generator)),
                reward=float(index % 2),
                staleness=index % 2,
            )
        )
    return rollouts


def share(ranks: RankGroup, seed: int) -> list[list[Rollout]]:
    """Micro-batches of this rank: rank 0 has most of them and the last one at most one, so that fillers are needed."""
    drawn = sequences(seed)
    dealt = [drawn[:3], drawn[3:6], drawn[6:7], drawn[7:]]
    others = min(ranks.world, len(dealt)) - 1
    if ranks.rank == 0:
        return dealt[: len(dealt) - others]
    return [dealt[-ranks.rank]] if ranks.rank <= others else []


def weights_of(policy: Policy, rank: int) -> dict[str, torch.Tensor]:
    """Whole float32 tensors on rank 0."""
    whole = {name: shard.full_tensor().detach() for name, shard in policy.named_shards()}
    return whole if rank == 0 else {}


def digest(policy: Policy, rank: int) -> str:
    """Digest of every bit of the weights; empty on other ranks than 0."""
    hasher = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(weights_of(policy, rank).items()):
        hasher.update(name.encode() + tensor.numpy().tobytes())
    return hasher.hexdigest() if rank == 0 else ""


def leave_behind(trainer: Trainer, ranks: RankGroup, path: Path) -> None:
    """Write the whole weights to `path`."""
    whole = weights_of(trainer.policy, ranks.rank)
    if ranks.rank == 0:
        save_file(whole, path)


def train(ranks: RankGroup, directory: Path) -> Any:
    """Four steps; weights are left behind for comparison with another number of ranks."""
    trainer = trainer_of(ranks, directory)
    leave_behind(trainer, ranks, directory / f"start-{ranks.world}.safetensors")
    reports = [trainer.train(share(ranks, seed), seed).metrics for seed in range(STEPS)]
    leave_behind(trainer, ranks, directory / f"weights-{ranks.world}.safetensors")
    return {"digest": digest(trainer.policy, ranks.rank), "metrics": reports}


def repeat(ranks: RankGroup, directory: Path) -> Any:
    """The same four steps again, from the start."""
    trainer = trainer_of(ranks, directory)
    for seed in range(STEPS):
        trainer.train(share(ranks, seed), seed)
    return digest(trainer.policy, ranks.rank)


def once(ranks: RankGroup, directory: Path) -> Any:
    """One update, routed natively; this rank's rows of the gradient (a tenth of it is Adam's first moment)."""
    trainer = trainer_of(ranks, directory, router_replay="off", updates_per_batch=1)
    report = trainer.train(share(ranks, 0), 0)
    moments: dict[str, Any] = {
        name.removeprefix("exp_avg."): s for name, s in trainer.state().items() if name.startswith("exp_avg.")
    }
    return {
        "grad_norm": report.metrics["grad_norm"],
        "moments": {
            name: (s.__create_chunk_list__()[0].offsets[0], s.to_local().tolist()) for name, s in moments.items()
        },
    }


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
    return {"copies": held.copies, "norms": norms, "written": written}


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


def publish(ranks: RankGroup, directory: Path) -> Any:
    """Gathered, taken apart and written, in two files."""
    trainer = trainer_of(ranks, directory)
    whole = gather(trainer.policy, ranks.rank)
    if ranks.rank != 0:
        return sorted(whole)
    stored = stored_tensors(directory / "model")
    out = directory / f"published-{ranks.world}"
    out.mkdir()
    tensors = stored_form(trainer.policy.model, whole, stored)
    return [path.name for path in write_files(tensors, out, sum(t.nbytes for t in tensors.values()) * 2 // 3)]


def nothing(ranks: RankGroup, directory: Path) -> Any:
    """A batch of which every sequence was rejected."""
    trainer = trainer_of(ranks, directory)
    before = digest(trainer.policy, ranks.rank)
    empty = trainer.train([[], []], 0).metrics
    return {"same": before == digest(trainer.policy, ranks.rank), "skipped": empty["skipped_updates"]}


def modes(ranks: RankGroup, directory: Path) -> Any:
    """Every way of routing and of the old policy trains; what it reports of router replay."""
    results = {}
    for mode, old in (("rollout", "proximal"), ("old", "proximal"), ("off", "proximal"), ("rollout", "rollout")):
        trainer = trainer_of(ranks, directory, router_replay=mode, old_policy=old, updates_per_batch=1)
        results[f"{mode}/{old}"] = trainer.train(share(ranks, 1), 0).metrics
    for name, changes in (
        ("espo", {}),
        ("espo, recomputed", {"activation_checkpointing": True}),
        ("espo, offloaded", {"optimizer": {"cpu_offload": True}}),
        ("espo, bf16", {"precision": "bf16"}),
    ):
        trainer = trainer_of(ranks, directory, objective="espo", correction="tis", **changes)
        results[name] = trainer.train(share(ranks, 1), 0).metrics
    return results


class Collectives(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what goes through process groups, by the operation's name and the dtype of what it sends."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            sent = next((leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)), None)
            self.counts[f"{func._opname} {None if sent is None else sent.dtype}"] += 1
        return func(*args, **(kwargs or {}))


def accumulated(ranks: RankGroup, directory: Path) -> Any:
    """Collectives of one update of one micro-batch and of four, computed in bf16, and what the trainer keeps."""
    counts = {}
    for micros in (1, 4):
        trainer = trainer_of(ranks, directory, updates_per_batch=1, precision="bf16", measure_replay_every=0)
        with Collectives() as heard:
            trainer.train([[rollout] for rollout in sequences(0)[:micros]], 0)
        counts[micros] = heard.counts
    kept = {name.partition(".")[0]: str(tensor.dtype) for name, tensor in trainer.state().items()}
    return {"counts": counts, "layers": LAYERS, "kept": kept}


def kl(ranks: RankGroup, directory: Path) -> Any:
    """Two steps that hold on to the model the run began with; the weights between them are left behind."""
    trainer = trainer_of(ranks, directory, updates_per_batch=1, kl_coefficient=0.5)
    first = trainer.train(share(ranks, 0), 0).metrics
    leave_behind(trainer, ranks, directory / "kl.safetensors")
    second = trainer.train(share(ranks, 1), 1).metrics
    rounded = trainer_of(ranks, directory, updates_per_batch=1, kl_coefficient=0.5, precision="bf16")
    return {"first": first, "second": second, "bf16": rounded.train(share(ranks, 0), 0).metrics}


def shaped(ranks: RankGroup, directory: Path) -> Any:
    """One update on sequences of which two in three are of groups that were all correct or all wrong."""
    found = {}
    for old in ("proximal", "rollout"):
        trainer = trainer_of(
            ranks, directory, router_replay="off", old_policy=old, updates_per_batch=1, zero_variance_alpha=0.3
        )
        micro_batches = [[unanimous(rollout) for rollout in micro] for micro in share(ranks, 0)]
        found[old] = trainer.train(micro_batches, 0).metrics
    return found


def unanimous(rollout: Rollout) -> Rollout:
    """Every third is of a group that was all correct, every third of one that was all wrong; these have advantage 0."""
    verdicts: tuple[Unanimous | None, ...] = (None, "correct", "wrong")
    verdict = verdicts[int(rollout.rollout_id[1:]) % 3]
    return replace(rollout, unanimous=verdict, advantage=rollout.advantage if verdict is None else 0.0)


SCENARIOS: dict[str, Callable[[RankGroup, Path], Any]] = (
    {
        function.__name__: function
        for function in (
            train,
            repeat,
            once,
            resume,
            copies,
            other_model,
            damage,
            damages,
            full_disk,
            publish,
            nothing,
            modes,
        )
    }
    | {
        function.__name__: function
        for function in (
            accumulated,
            kl,
            shaped,
            loss_ranks.objectives,
            loss_ranks.sharded_head,
            family_ranks.families,
            fp8_ranks.swapped,
        )
    }
    | {f"resume_from_{left_by}": partial(resume_from, left_by) for left_by in (1, 2, 3)}
)


def main(rank: int, world: int, directory: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    ranks = join_group(rendezvous(rank, world, directory / f"world-{world}", 60.0), 60.0)
    for name in names:
        print(json.dumps({name: SCENARIOS[name](ranks, directory)}), flush=True)
    leave_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
