"""One rank of a real process group, for the tests: `rank_program.py RANK WORLD DIRECTORY SCENARIO...`.

Each scenario is a function of (ranks, directory) whose result, as JSON, is a line on standard output.
"""

import json
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from learner.model.policy import stored_tensors
from learner.ranks.group import RankGroup, join_group, leave_group
from learner.ranks.lifeline import rendezvous
from learner.weights import gather, stored_form, write_files
from tests.learner.losses import loss_ranks
from tests.learner.model import fp8_ranks
from tests.learner.rank_checkpoints import copies, damage, damages, full_disk, other_model, resume, resume_from
from tests.learner.rank_trainer import LAYERS, STEPS, digest, leave_behind, sequences, share, trainer_of, unanimous
from tests.learner.router_replay import family_ranks


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
