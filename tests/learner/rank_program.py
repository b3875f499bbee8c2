"""One rank of a real process group, for the tests: `rank_program.py RANK WORLD DIRECTORY SCENARIO...`.

Each scenario is a function of (ranks, directory) whose result, as JSON, is a line on standard output.
"""

import hashlib
import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from learner.checkpoints import Checkpoints, Position
from learner.distributed import Ranks, join, leave
from learner.errors import CheckpointError
from learner.policy import Policy, build_policy, model_shape, stored_tensors
from learner.sequences import Rollout
from learner.settings import LearnerSettings
from learner.step import Trainer
from learner.weights import gather, stored_form, write_files

SEQUENCES = 12
LAYERS, TOP_K, EXPERTS = 2, 2, 4
STEPS = 4


def trainer_of(ranks: Ranks, directory: Path, **changes: Any) -> Trainer:
    """A trainer on the test's model, in the state it starts from."""
    settings = LearnerSettings(
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
    return Trainer(policy, model_shape(policy.model, None), settings, ranks)


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


def share(ranks: Ranks, seed: int) -> list[list[Rollout]]:
    """Micro-batches of this rank: rank 0 has three of them and rank 1 one, so that fillers are needed."""
    drawn = sequences(seed)
    if ranks.world == 1:
        return [drawn[:3], drawn[3:6], drawn[6:7], drawn[7:]]
    return [drawn[:3], drawn[3:6], drawn[6:7]] if ranks.rank == 0 else [drawn[7:]]


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


def leave_behind(trainer: Trainer, ranks: Ranks, path: Path) -> None:
    """Write the whole weights to `path`."""
    whole = weights_of(trainer.policy, ranks.rank)
    if ranks.rank == 0:
        save_file(whole, path)


def train(ranks: Ranks, directory: Path) -> Any:
    """Four steps; weights are left behind for comparison with another number of ranks."""
    trainer = trainer_of(ranks, directory)
    leave_behind(trainer, ranks, directory / f"start-{ranks.world}.safetensors")
    reports = [trainer.train(share(ranks, seed), seed).metrics for seed in range(STEPS)]
    leave_behind(trainer, ranks, directory / f"weights-{ranks.world}.safetensors")
    return {"digest": digest(trainer.policy, ranks.rank), "metrics": reports}


def repeat(ranks: Ranks, directory: Path) -> Any:
    """The same four steps again, from the start."""
    trainer = trainer_of(ranks, directory)
    for seed in range(STEPS):
        trainer.train(share(ranks, seed), seed)
    return digest(trainer.policy, ranks.rank)


def once(ranks: Ranks, directory: Path) -> Any:
    """One update, routed natively; this rank's rows of the gradient (a tenth of it is Adam's first moment)."""
    trainer = trainer_of(ranks, directory, router_replay="off", updates_per_batch=1)
    report = trainer.train(share(ranks, 0), 0)
    moments = {name.removeprefix("exp_avg."): s for name, s in trainer.shards().items() if name.startswith("exp_avg.")}
    return {
        "grad_norm": report.metrics["grad_norm"],
        "moments": {name: (shard.first, shard.local.tolist()) for name, shard in moments.items()},
    }


def resume(ranks: Ranks, directory: Path) -> Any:
    """Two steps, a checkpoint, and the other two in a new trainer that was filled from it."""
    checkpoints = Checkpoints(directory / f"resume-{ranks.world}", "m", 1, ranks)
    first = trainer_of(ranks, directory)
    for seed in range(2):
        first.train(share(ranks, seed), seed)
    checkpoints.save(Position(2, first.updates, 2, 17), first.shards())
    second = trainer_of(ranks, directory)
    position = restore(checkpoints, second)
    for seed in range(2, STEPS):
        second.train(share(ranks, seed), seed)
    return {"digest": digest(second.policy, ranks.rank), "position": list(vars_of(position))}


def resume_other(ranks: Ranks, directory: Path) -> Any:
    """What the *other* number of ranks left after two steps, read back by this one: digest of the restored weights."""
    checkpoints = Checkpoints(directory / f"resume-{3 - ranks.world}", "m", 1, ranks)
    trainer = trainer_of(ranks, directory)
    restore(checkpoints, trainer)
    for seed in range(2, STEPS):
        trainer.train(share(ranks, seed), seed)
    leave_behind(trainer, ranks, directory / f"resumed-by-{ranks.world}.safetensors")
    return None


def restore(checkpoints: Checkpoints, trainer: Trainer) -> Position:
    found = checkpoints.newest()
    assert found is not None
    path, manifest = found
    checkpoints.load(path, manifest, trainer.shards())
    trainer.restored(manifest.position.updates)
    return manifest.position


def vars_of(position: Position) -> tuple[int, ...]:
    return position.step, position.updates, position.next_batch, position.offset


def damage(ranks: Ranks, directory: Path) -> Any:
    """The newest checkpoint loses a byte, one that was never finished lies about: the one before is taken."""
    root = directory / f"damage-{ranks.world}"
    checkpoints = Checkpoints(root, "m", 2, ranks)
    trainer = trainer_of(ranks, directory)
    for step in (1, 2, 3):
        checkpoints.save(Position(step, step, step, step), trainer.shards())
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


def other_model(ranks: Ranks, directory: Path) -> Any:
    """What reading a checkpoint of another model says."""
    try:
        Checkpoints(directory / f"resume-{ranks.world}", "another", 1, ranks).newest()
    except CheckpointError as error:
        return str(error)


def full_disk(ranks: Ranks, directory: Path) -> Any:
    """The last rank's file cannot be written: nobody believes in the checkpoint."""
    root = directory / f"full-{ranks.world}"
    checkpoints = Checkpoints(root, "m", 2, ranks)
    trainer = trainer_of(ranks, directory)
    checkpoints.save(Position(1, 1, 1, 1), trainer.shards())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if ranks.rank == ranks.world - 1:
        # Writing past this many bytes fails with an OSError, as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        checkpoints.save(Position(2, 2, 2, 2), trainer.shards())
        complaint = ""
    except CheckpointError as error:
        complaint = str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    found = checkpoints.newest()
    return {"complaint": complaint, "newest": found[0].name if found else None}


def publish(ranks: Ranks, directory: Path) -> Any:
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


def nothing(ranks: Ranks, directory: Path) -> Any:
    """A batch of which every sequence was rejected."""
    trainer = trainer_of(ranks, directory)
    before = digest(trainer.policy, ranks.rank)
    empty = trainer.train([[], []], 0).metrics
    return {"same": before == digest(trainer.policy, ranks.rank), "skipped": empty["skipped_updates"]}


def modes(ranks: Ranks, directory: Path) -> Any:
    """Every way of routing and of the old policy trains; what it reports of replay."""
    results = {}
    for mode, old in (("rollout", "proximal"), ("old", "proximal"), ("off", "proximal"), ("rollout", "rollout")):
        trainer = trainer_of(ranks, directory, router_replay=mode, old=old, updates_per_batch=1)
        results[f"{mode}/{old}"] = trainer.train(share(ranks, 1), 0).metrics
    for name, changes in (
        ("espo", {}),
        ("espo, recomputed", {"recompute": True}),
        ("espo, bf16", {"precision": "bf16"}),
    ):
        trainer = trainer_of(ranks, directory, objective="espo", correction="tis", **changes)
        results[name] = trainer.train(share(ranks, 1), 0).metrics
    return results


SCENARIOS: dict[str, Callable[[Ranks, Path], Any]] = {
    function.__name__: function
    for function in (train, repeat, once, resume, resume_other, other_model, damage, full_disk, publish, nothing, modes)
}


def main(rank: int, world: int, directory: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    ranks = join(rank, world, directory / f"world-{world}", 0, 60.0, 60.0)
    for name in names:
        print(json.dumps({name: SCENARIOS[name](ranks, directory)}), flush=True)
    leave()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
