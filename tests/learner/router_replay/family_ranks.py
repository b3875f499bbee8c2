"""What two real gloo ranks make of each family: a scenario of `rank_program.py`.

Everything at once: FSDP2, packed rows of which one rank has two and the other one, recomputation, both implementations
of the experts, every mode of router replay. Gradients and published weights are left behind for comparison.
"""

from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from learner.model.policy import build_policy, model_shape, stored_tensors
from learner.ranks.group import RankGroup
from learner.training.step import Trainer
from learner.weights import gather, stored_form, write_files
from tests.learner.router_replay.families import FAMILIES, SHAPES, rollouts
from tests.learner.settings import learner_settings

CASES: dict[str, dict[str, Any]] = {
    "rollout, eager": {"router_replay": "rollout"},
    "rollout, grouped_mm": {"router_replay": "rollout", "experts": "grouped_mm"},
    "old, eager": {"router_replay": "old"},
    "off, grouped_mm": {"router_replay": "off", "experts": "grouped_mm"},
    "rollout, bf16": {"router_replay": "rollout", "experts": "grouped_mm", "precision": "bf16"},
}


def families(ranks: RankGroup, directory: Path) -> Any:
    """One update of each case; what its metrics say."""
    return {family: {case: update(ranks, directory / family, case) for case in CASES} for family in FAMILIES}


def update(ranks: RankGroup, directory: Path, case: str) -> dict[str, float]:
    """One update in which nothing is clipped: ten times Adam's first moment is the gradient."""
    settings = learner_settings(
        model=str(directory),
        ranks=ranks.world,
        objective="grpo",
        activation_checkpointing=True,
        max_grad_norm=1e9,
        learning_rate=1e-2,
        chunk_tokens=4,
        **CASES[case],
    )
    policy = build_policy(directory, settings, ranks.mesh)
    shape = model_shape(policy.model, None)
    assert shape == SHAPES[directory.name]
    trainer = Trainer(policy, shape, settings, ranks)
    drawn = rollouts(directory.name)
    micro_batches = [drawn[:3], drawn[3:4]] if ranks.rank == 0 else [drawn[4:]]
    metrics = trainer.train(micro_batches, 0).metrics
    state: dict[str, Any] = trainer.state()
    gradients = {
        name.removeprefix("exp_avg."): 10 * moment.full_tensor()
        for name, moment in state.items()
        if name.startswith("exp_avg.")
    }
    weights = {name: shard.full_tensor().detach() for name, shard in policy.named_shards()}
    whole = gather(policy, ranks.rank)
    if ranks.rank == 0:
        save_file(gradients, directory / f"gradients, {case}.st")
        save_file(weights, directory / f"weights, {case}.st")
        published = directory / f"published, {case}"
        published.mkdir()
        write_files(stored_form(policy.model, whole, stored_tensors(directory)), published, 2**30)
    return metrics
