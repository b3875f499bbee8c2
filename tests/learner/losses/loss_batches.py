"""Batches of drawn tokens for the tests of the objectives, and what can be done to them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from learner.losses import LossTerms, TokenBatch

VOCAB = 64
LENGTHS = (1, 2, 5, 7, 10, 13)
PER_TOKEN = ("logp", "logp_old", "advantage", "entropy_old", "logp_rollout", "logp_ref")


def make_batch(
    lengths: Sequence[int] = LENGTHS, seed: int = 0, spread: float = 0.3, token_advantages: bool = False
) -> TokenBatch:
    """float64; advantages of a response's tokens are the same unless `token_advantages`."""
    g = torch.Generator().manual_seed(seed)
    seq = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths, dtype=torch.int64))

    def normal(count: int, scale: float) -> Tensor:
        return torch.randn(count, generator=g, dtype=torch.float64) * scale

    old = -torch.rand(len(seq), generator=g, dtype=torch.float64) * 3
    return TokenBatch(
        logp=(old + normal(len(seq), spread)).requires_grad_(),
        logp_old=old,
        advantage=normal(len(seq), 1.0) if token_advantages else normal(len(lengths), 1.0)[seq],
        seq=seq,
        num_seqs=len(lengths),
        entropy_old=torch.rand(len(seq), generator=g, dtype=torch.float64) * 4,
        logp_rollout=old + normal(len(seq), 0.4),
        vocab_size=VOCAB,
        logp_ref=old + normal(len(seq), 0.2),
    )


def changed(batch: TokenBatch, **fields: Any) -> TokenBatch:
    """The batch with other fields; None too, which `replace` would not be allowed to take."""
    return replace(batch, **fields)


def take(batch: TokenBatch, tokens: Tensor) -> TokenBatch:
    """These tokens, in this order; sequences keep their numbers."""
    fields = {n: getattr(batch, n)[tokens] for n in PER_TOKEN if getattr(batch, n) is not None}
    return replace(batch, seq=batch.seq[tokens], **fields)


def select(batch: TokenBatch, sequences: Sequence[int]) -> TokenBatch:
    """These sequences, in this order, numbered anew."""
    chosen = [(batch.seq == old).nonzero().squeeze(1) for old in sequences]
    numbers = [torch.full_like(tokens, new) for new, tokens in enumerate(chosen)]
    return replace(take(batch, torch.cat(chosen)), seq=torch.cat(numbers), num_seqs=len(sequences))


def loss_of(terms: LossTerms) -> Tensor:
    """Σ numerator / Σ denominator."""
    return terms.numerator.sum() / terms.denominator.sum()


def gradient(loss: Tensor, batch: TokenBatch) -> Tensor:
    """With respect to log π_θ of each token."""
    (grad,) = torch.autograd.grad(loss, batch.logp)
    return grad
