"""The loss and its gradient over 1, 2 and 4 real gloo ranks are those of one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from learner.losses import OBJECTIVES, TokenBatch, correction, merge_metrics, metric_values, objective

SEQUENCES = 9
METRICS_THAT_MOVE = {"loss", "ratio", "clip_fraction", "entropy/high", "rollout_k3", "ratio_max"}


def batch_of(sequences: list[int], theta: torch.Tensor) -> TokenBatch:
    """Sequence i has i tokens (so sequence 0 has none); log-probs depend on one shared parameter vector."""
    rows = []
    for new, old in enumerate(sequences):
        g = torch.Generator().manual_seed(old)
        draw = torch.randn(6, old, generator=g, dtype=torch.float64)
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
    )


def reduced(value: torch.Tensor, op: dist.ReduceOp.RedOpType) -> torch.Tensor:
    dist.all_reduce(value, op=op)
    return value


def worker() -> None:
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=os.environ["MEETING_POINT"], rank=rank, world_size=world)
    for name in OBJECTIVES:
        policy = objective(name, correction=correction("tis"))
        theta = torch.tensor([0.2, -0.1, 0.3], dtype=torch.float64, requires_grad=True)
        whole = policy(batch_of(list(range(SEQUENCES)), theta))
        (expected,) = torch.autograd.grad(whole.loss(), theta)
        # Micro-batches of two sequences, dealt out to the ranks; with 4 ranks one rank has fewer than the others.
        micro = [list(range(SEQUENCES))[i : i + 2] for i in range(0, SEQUENCES, 2)][rank::world]
        terms = [policy(batch_of(sequences, theta)) for sequences in micro]
        total = reduced(torch.stack([t.denominator.sum() for t in terms]).sum(), dist.ReduceOp.SUM)
        loss = torch.stack([t.loss(total) for t in terms]).sum()
        (grad,) = torch.autograd.grad(loss, theta)
        torch.testing.assert_close(reduced(loss.detach().clone(), dist.ReduceOp.SUM), whole.loss().detach())
        torch.testing.assert_close(reduced(grad, dist.ReduceOp.SUM), expected, rtol=1e-9, atol=1e-12)
        merged = merge_metrics(t.metrics for t in terms)
        for key, value in merged.items():
            reduced(value, dist.ReduceOp.MAX if key.endswith("_max") else dist.ReduceOp.SUM)
        shown, reference = metric_values(merged), metric_values(whole.metrics)
        assert shown.keys() == reference.keys() and shown.keys() >= METRICS_THAT_MOVE
        assert all(abs(shown[key] - reference[key]) < 1e-9 for key in shown)
    dist.destroy_process_group()


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_change_nothing(ranks: int, tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, __file__],
            env={
                **os.environ,
                "RANK": str(rank),
                "WORLD_SIZE": str(ranks),
                "MEETING_POINT": f"file://{tmp_path / 'store'}",
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(Path(__file__).parents[2]),
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
            process.wait()


if __name__ == "__main__":
    worker()
