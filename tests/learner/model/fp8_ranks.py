"""What two real gloo ranks make of a model whose layers were swapped: a scenario of `rank_program.py`."""

from pathlib import Path
from typing import Any

import torch

from learner.model.fp8 import compute_in_fp8
from learner.model.packed_row import Rollout
from learner.model.policy import load_model, mixed_precision, model_shape, shard, stored_tensors
from learner.ranks.group import RankGroup
from learner.settings import LearnerSettings
from learner.training.step import Trainer
from learner.weights import gather, stored_form
from tests.learner.model.fp8_engine import InPlain

TINY = Path(__file__).parents[3] / "models" / "tiny-moe"
REPORTED = ("loss", "grad_norm", "replay/k3_on", "replay/flip_share", "entropy")


def drawn() -> list[Rollout]:
    """Six sequences with routes that no router chose."""
    generator = torch.Generator().manual_seed(3)
    rollouts = []
    for index, length in enumerate((9, 14, 6, 21, 11, 4)):
        routes = torch.rand(length, 3, 8, generator=generator).topk(2).indices.to(torch.int16)
        tokens = torch.randint(3, 60, (length,), generator=generator)
        advantage = float(torch.randn((), generator=generator))
        rollouts.append(Rollout(f"r{index}", tokens, 2, torch.full((length - 2,), -3.0), routes, advantage, 0.0))
    return rollouts


def swapped(ranks: RankGroup, directory: Path) -> Any:
    """One update as transformers computes it and one with swapped layers, in both precisions; what they report."""
    found: dict[str, dict[str, Any]] = {}
    for precision in ("f32", "bf16"):
        for how in ("stock", "swapped"):
            settings = LearnerSettings(model=str(TINY), ranks=ranks.world, activation_checkpointing=True)
            model: Any = load_model(TINY, settings)
            modules = compute_in_fp8(model, InPlain()) if how == "swapped" else ()
            model.activation_checkpointing_enable({"use_reentrant": False})
            mixed = mixed_precision("f32" if precision == "f32" else "bf16", "cpu")
            policy = shard(model, ranks.mesh, mixed, settings)
            rollouts = drawn()
            micro_batches = [rollouts[:2], rollouts[2:4]] if ranks.rank == 0 else [rollouts[4:]]
            trainer = Trainer(policy, model_shape(policy.model, None), settings, ranks)
            metrics = trainer.train(micro_batches, 0).metrics
            whole = gather(policy, ranks.rank)
            stored = stored_tensors(TINY)
            found[f"{precision}, {how}"] = {
                **{name: metrics[name] for name in REPORTED},
                "modules": len(modules),
                "published": ranks.rank == 0 and stored_form(policy.model, whole, stored).keys() == stored.keys(),
            }
    return found
