"""A rank's trainer on the tiny model, the rollouts that it trains on, and digests of its weights."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from learner.model.packed_row import Rollout
from learner.model.policy import Policy, build_policy, build_reference, model_shape
from learner.ranks.group import RankGroup
from learner.training.step import Trainer
from schemas import Unanimous
from tests.learner.settings import learner_settings

SEQUENCES = 12
LAYERS, TOP_K, EXPERTS = 2, 2, 4
STEPS = 4

GIVEN = {4: (1, 2, 5), 5: (0, 3)}
"""Response tokens of a sequence, by its index, that were not sampled."""


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
    """The same sequences on every rank; every third has no routes, and some tokens of the others have none.

    Of two of them not every response token was sampled.
    """
    generator = torch.Generator().manual_seed(seed)
    rollouts = []
    for index in range(SEQUENCES):
        prompt, response = 2 + index % 3, 1 + (5 * index) % 7
        length = prompt + response
        tokens = torch.randint(3, 32, (length,), generator=generator)
        routes = torch.rand(length, LAYERS, EXPERTS, generator=generator).topk(TOP_K).indices.to(torch.int16)
        routes[-1] = -1
        logp_rollout = -3.4 + 0.1 * torch.randn(response, generator=generator)
        sampled = torch.tensor([token not in GIVEN.get(index, ()) for token in range(response)])
        rollouts.append(
            Rollout(
                rollout_id=f"r{index}",
                tokens=tokens,
                prompt_tokens=prompt,
                logp_rollout=torch.where(sampled, logp_rollout, 0.0),
                routes=None if index % 3 == 0 else routes,
                advantage=float(torch.randn((), generator=generator)),
                reward=float(index % 2),
                staleness=index % 2,
                sampled=sampled if index in GIVEN else None,
            )
        )
    return rollouts


def sampled_of(rollout: Rollout) -> torch.Tensor:
    """Which response tokens were sampled, bool."""
    if rollout.sampled is None:
        return torch.ones(len(rollout.tokens) - rollout.prompt_tokens, dtype=torch.bool)
    return rollout.sampled


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


def unanimous(rollout: Rollout) -> Rollout:
    """Every third is of a group that was all correct, every third of one that was all wrong; these have advantage 0."""
    verdicts: tuple[Unanimous | None, ...] = (None, "correct", "wrong")
    verdict = verdicts[int(rollout.rollout_id[1:]) % 3]
    return replace(rollout, unanimous=verdict, advantage=rollout.advantage if verdict is None else 0.0)
