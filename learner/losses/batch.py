"""What an objective reads and returns: flat tokens in, per-sequence numerators and denominators out."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

_PER_TOKEN = ("logp", "logp_old", "advantage", "entropy_old", "logp_rollout", "logp_ref")


@dataclass(frozen=True)
class TokenBatch:
    """The sampled tokens of some whole sequences, flattened; prompt and padding tokens, and what a tool or an
    environment gave to a response, are left out.

    A sequence must not be cut between two batches (ESPO, GSPO and GMPO need all of its tokens); which sequences share a
    batch, and in which order, changes nothing.

    Attributes, all `[T]` unless stated:
        logp: log π_θ(y_t) of the sampled token, in nats; the only field that gradients flow through.
        logp_old: log π_old(y_t), the proximal policy, under the same replayed routes.
        advantage: Â of the token's response.
        seq: int64, which sequence the token belongs to, in `[0, num_seqs)`; need not be sorted or contiguous.
        num_seqs: S, the sequences in the batch, those without any token included.
        entropy_old: −Σ_v π_old(v) log π_old(v) over the full vocabulary, in nats; `espo` needs it.
        logp_rollout: log-probability the rollout engine recorded; corrections and `old="rollout"` need it.
        vocab_size: |V|; the adaptive clip range of `espo` needs it.
        logp_ref: log-probability under a frozen reference policy; the KL term needs it.

    Raises:
        ValueError: shapes differ, `seq` is not int64 or out of range, a size is negative.
    """

    logp: Tensor
    logp_old: Tensor
    advantage: Tensor
    seq: Tensor
    num_seqs: int
    entropy_old: Tensor | None = None
    logp_rollout: Tensor | None = None
    vocab_size: int | None = None
    logp_ref: Tensor | None = None

    def __post_init__(self) -> None:
        if self.logp.dim() != 1:
            raise ValueError(f"TokenBatch.logp must be flat [T], got shape {list(self.logp.shape)}.")
        for name in ("seq", *_PER_TOKEN):
            tensor = getattr(self, name)
            if tensor is not None and tensor.shape != self.logp.shape:
                raise ValueError(
                    f"TokenBatch.{name} has shape {list(tensor.shape)}, "
                    f"allowed is that of logp, {list(self.logp.shape)}."
                )
        if self.seq.dtype != torch.int64:
            raise ValueError(f"TokenBatch.seq has dtype {self.seq.dtype}, allowed is torch.int64.")
        if self.num_seqs < 0:
            raise ValueError(f"TokenBatch.num_seqs is {self.num_seqs}, allowed is 0 or more.")
        if self.seq.numel() and not 0 <= int(self.seq.min()) <= int(self.seq.max()) < self.num_seqs:
            raise ValueError(
                f"TokenBatch.seq holds values from {int(self.seq.min())} to {int(self.seq.max())}, "
                f"allowed is 0 to {self.num_seqs - 1} (num_seqs is {self.num_seqs})."
            )


class LossTerms(NamedTuple):
    """Summands of the loss; loss = Σ numerator / Σ denominator over all micro-batches and ranks of the step.

    A sequence without a usable token has numerator 0 *and* denominator 0: it is no member of the mean, so that empty
    sequences and the filler of a short micro-batch never dilute it.

    Attributes:
        numerator: `[S]`, differentiable, in the working precision.
        denominator: `[S]`, constant: 1 for a mean over sequences, the token count for a mean over tokens.
        metrics: detached; see `learner.losses.metrics` for the convention.
    """

    numerator: Tensor
    denominator: Tensor
    metrics: dict[str, Tensor]

    def loss(self, total: Tensor | float | None = None) -> Tensor:
        """Σ numerator / `total`, where `total` is the Σ denominator of the whole step (this batch's own by default).

        A total of 0 gives 0, still attached to the graph: a rank whose tokens are all masked must take part in
        backward.
        """
        count = self.denominator.sum() if total is None else torch.as_tensor(total, device=self.numerator.device)
        return self.numerator.sum() / count.to(self.numerator.dtype).clamp(min=1.0)


def working_dtype(logp: Tensor) -> torch.dtype:
    """float64 stays; everything narrower is widened to float32, since exp of a bf16 log-ratio is off by per cents."""
    return torch.float64 if logp.dtype == torch.float64 else torch.float32


def usable(batch: TokenBatch) -> tuple[TokenBatch, Tensor]:
    """The tokens all of whose fields are finite, in working precision, and the mask `[T]` that says which they are.

    Selecting them, rather than multiplying by the mask, keeps NaN out of every sum and every gradient.
    """
    dtype = working_dtype(batch.logp)
    fields = {name: value.to(dtype) for name in _PER_TOKEN if (value := getattr(batch, name)) is not None}
    keep = torch.ones_like(batch.seq, dtype=torch.bool)
    for value in fields.values():
        keep &= value.detach().isfinite()
    if not bool(keep.all()):
        fields = {name: value[keep] for name, value in fields.items()}
        return replace(batch, seq=batch.seq[keep], **fields), keep
    return replace(batch, **fields), keep
