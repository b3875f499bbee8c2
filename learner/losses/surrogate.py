"""The seam between an objective and the rest: what it says of each token."""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from learner.losses.batch import TokenBatch
from learner.losses.segments import segment_count


@dataclass(frozen=True)
class Surrogate:
    """One objective's view of a batch of usable tokens; the sequence's share of J is Σ_t weight·correction·term.

    Attributes:
        term: `[T]`, differentiable, to be maximised.
        weight: `[T]`, constant: what the objective's means make of one token.
        denominator: `[S]`, constant.
        ratio: `[T]`, detached importance ratio that was compared with the clip range.
        clipped: bool `[T]`, where clipping stops the gradient.
        top: bool `[T]`, the high-entropy group, or None to let the metrics take the top 20 %.
        metrics: what only this objective knows.
    """

    term: Tensor
    weight: Tensor
    denominator: Tensor
    ratio: Tensor
    clipped: Tensor
    top: Tensor | None = None
    metrics: dict[str, Tensor] = field(default_factory=dict)


class PolicyObjective(Protocol):
    """A policy objective: settings in its fields, one pure function of the usable tokens."""

    def __call__(self, batch: TokenBatch) -> Surrogate: ...


def sequence_mean(batch: TokenBatch) -> tuple[Tensor, Tensor]:
    """(weight `[T]`, denominator `[S]`) of "mean over the tokens of a sequence, then mean over sequences"."""
    lengths = segment_count(batch.seq, batch.num_seqs)
    weight = lengths.clamp(min=1).to(batch.logp.dtype).reciprocal()[batch.seq]
    return weight, (lengths > 0).to(batch.logp.dtype)


def token_mean(batch: TokenBatch) -> tuple[Tensor, Tensor]:
    """(weight `[T]`, denominator `[S]`) of "mean over all tokens of the step"."""
    lengths = segment_count(batch.seq, batch.num_seqs)
    return torch.ones_like(batch.logp.detach()), lengths.to(batch.logp.dtype)
