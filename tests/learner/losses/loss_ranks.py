"""What real gloo ranks do with objectives and the output head: scenarios of `rank_program.py`.

Each compares what the ranks get together with one process's result and says the largest difference.
"""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from learner.losses import OBJECTIVES, TokenBatch, correction, merge_metrics, metric_values, objective
from learner.model.logprobs import token_logprobs_and_entropy
from learner.ranks.group import RankGroup

SEQUENCES = 9
VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    *((name, {}) for name in OBJECTIVES),
    ("grpo", {"max_tokens": 12}),
    ("espo", {"ratio": "group_times_token", "boundaries": [0.3, 0.7]}),
)
VOCABULARY, WIDTH, TOKENS = 37, 16, 11


def batch_of(sequences: list[int], theta: Tensor) -> TokenBatch:
    """Sequence i has i tokens (so sequence 0 has none); log-probs depend on one shared parameter vector."""
    rows = []
    for new, old in enumerate(sequences):
        draw = torch.randn(7, old, generator=torch.Generator().manual_seed(old), dtype=torch.float64)
        rows.append((draw, torch.full((old,), new, dtype=torch.int64)))
    d = torch.cat([draw for draw, _ in rows], dim=1)
    return TokenBatch(
        logp=d[0] - 2 + torch.stack((d[1], d[2], d[3])).T @ theta,
        logp_old=d[0] - 2,
        advantage=d[4],
        seq=torch.cat([seq for _, seq in rows]),
        num_seqs=len(sequences),
        entropy_old=d[5].abs(),
        logp_rollout=d[0] - 2 + 0.3 * d[4],
        vocab_size=100,
        logp_ref=d[0] - 2 + 0.1 * d[6],
    )


def reduced(value: Tensor, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
    """Over all ranks, in place."""
    dist.all_reduce(value, op=op)
    return value


def objectives(ranks: RankGroup, directory: Path) -> Any:
    """Loss, gradient and metrics of nine sequences, dealt out in micro-batches of two: the largest differences.

    With 4 ranks one has a micro-batch more than the others.
    """
    found = []
    for name, options in VARIANTS:
        policy = objective(name, correction=correction("tis"), kl=0.1, **options)
        theta = torch.tensor([0.2, -0.1, 0.3], dtype=torch.float64, requires_grad=True)
        whole = policy(batch_of(list(range(SEQUENCES)), theta))
        (expected,) = torch.autograd.grad(whole.loss(), theta)
        micro = [list(range(SEQUENCES))[i : i + 2] for i in range(0, SEQUENCES, 2)][ranks.rank :: ranks.world]
        terms = [policy(batch_of(sequences, theta)) for sequences in micro]
        total = reduced(torch.stack([t.denominator.sum() for t in terms]).sum())
        loss = torch.stack([t.loss(total) for t in terms]).sum()
        (grad,) = torch.autograd.grad(loss, theta)
        merged = merge_metrics(t.metrics for t in terms)
        for key, value in merged.items():
            reduced(value, dist.ReduceOp.MAX if key.endswith("_max") else dist.ReduceOp.SUM)
        shown, reference = metric_values(merged), metric_values(whole.metrics)
        found.append(
            {
                "variant": f"{name} {options}",
                "loss": abs(reduced(loss.detach().clone()) - whole.loss().detach()).item(),
                "gradient": (reduced(grad) - expected).abs().max().item(),
                "gradient_size": expected.abs().max().item(),
                "metrics": max(abs(shown[key] - reference[key]) for key in reference),
                "same_metrics": shown.keys() == reference.keys(),
                "names": sorted(shown),
            }
        )
    return found


class Head(nn.Module):
    """A layer, and an output head that is applied in this module's own forward, as the policy's is."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(WIDTH, WIDTH, bias=False)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, inputs: Tensor, targets: Tensor, chunk_tokens: int) -> tuple[Tensor, Tensor]:
        return token_logprobs_and_entropy(self.body(inputs), self.head.weight, targets, chunk_tokens)


def dense(module: Head, inputs: Tensor, targets: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The same in one matrix, on the whole weights."""
    hidden = inputs.to(dtype) @ module.body.weight.to(dtype).t()
    logp = torch.log_softmax((hidden @ module.head.weight.to(dtype).t()).float(), dim=-1)
    return logp.gather(1, targets[:, None]).squeeze(1), -(logp.exp() * logp).sum(-1)


def drawn(rank: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets of a rank; they have different numbers of tokens."""
    generator = torch.Generator().manual_seed(rank)
    tokens = TOKENS + rank
    return torch.randn(tokens, WIDTH, generator=generator), torch.randint(0, VOCABULARY, (tokens,), generator=generator)


def sharded_head(ranks: RankGroup, directory: Path) -> Any:
    """Log-probs, entropies and the head's gradient under FSDP2, whose shards of 37 rows are uneven."""
    found = {}
    for name, dtype, reshard in (
        ("f32", torch.float32, False),
        ("f32, gathered again", torch.float32, True),
        ("bf16", torch.bfloat16, True),
    ):
        torch.manual_seed(5)
        plain = Head()
        sharded = Head()
        sharded.load_state_dict(plain.state_dict())
        narrow = None if dtype == torch.float32 else dtype
        mixed = MixedPrecisionPolicy(param_dtype=narrow, reduce_dtype=torch.float32)
        fully_shard(sharded, mesh=ranks.mesh, mp_policy=mixed, reshard_after_forward=reshard)
        assert isinstance(sharded.head.weight, DTensor)
        inputs, targets = drawn(ranks.rank)
        got = sharded(inputs, targets, 4)
        expected = dense(plain, inputs, targets, dtype)
        # Each rank's whole gradient here, the mean over ranks there.
        for of_rank in range(ranks.world):
            logp, entropy = dense(plain, *drawn(of_rank), dtype)
            torch.autograd.backward((logp.sum() + entropy.square().sum()) / ranks.world)
        torch.autograd.backward(got[0].sum() + got[1].square().sum())
        found[name] = {
            "value": max((mine - theirs).abs().max().item() for mine, theirs in zip(got, expected, strict=True)),
            "rows": sharded.head.weight.to_local().shape[0],
        }
        for part in ("head", "body"):
            grad = getattr(sharded, part).weight.grad
            reference = getattr(plain, part).weight.grad
            found[name][part] = ((grad.full_tensor() - reference).abs().max() / reference.abs().max()).item()
    return found
