"""GRPO and DAPO: the token's own ratio, clipped; they differ in how tokens are averaged."""

from dataclasses import dataclass

import torch
from torch import Tensor

from learner.losses.batch import TokenBatch
from learner.losses.ratios import clipped, clipped_surrogate, log_ratio
from learner.losses.surrogate import Surrogate, check_clip, sequence_mean, token_mean


@dataclass(frozen=True)
class Grpo:
    """J = mean_i 1/|o_i| Σ_t min(r_t·Â, clip(r_t, 1 − low, 1 + high)·Â), r_t = π_θ/π_old (arXiv 2402.03300, Eq. 3).

    Attributes:
        max_tokens: where given, 1/max_tokens replaces 1/|o_i|, so that long wrong answers are not spared:
            Dr. GRPO (arXiv 2503.20783). Takes unnormalised advantages to go with it.
    """

    clip_low: float = 0.2
    clip_high: float = 0.28
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        check_clip("grpo", self.clip_low, self.clip_high)
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"grpo: max_tokens is {self.max_tokens}, allowed is 1 or more, or None.")

    def __call__(self, batch: TokenBatch) -> Surrogate:
        weight, denominator = sequence_mean(batch)
        if self.max_tokens is not None:
            weight = torch.full_like(weight, 1.0 / self.max_tokens)
        return _token_surrogate(batch, self.clip_low, self.clip_high, weight, denominator)


@dataclass(frozen=True)
class Dapo:
    """J = Σ_i Σ_t min(…) / Σ_i |o_i|: GRPO's token term, every token counting alike (arXiv 2503.14476, Eq. 8)."""

    clip_low: float = 0.2
    clip_high: float = 0.28

    def __post_init__(self) -> None:
        check_clip("dapo", self.clip_low, self.clip_high)

    def __call__(self, batch: TokenBatch) -> Surrogate:
        return _token_surrogate(batch, self.clip_low, self.clip_high, *token_mean(batch))


def _token_surrogate(batch: TokenBatch, low: float, high: float, weight: Tensor, denominator: Tensor) -> Surrogate:
    ratio = torch.exp(log_ratio(batch.logp, batch.logp_old))
    return Surrogate(
        term=clipped_surrogate(ratio, batch.advantage, low, high),
        weight=weight,
        denominator=denominator,
        ratio=ratio.detach(),
        clipped=clipped(ratio.detach(), batch.advantage, low, high),
    )
