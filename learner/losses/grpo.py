"""GRPO and DAPO: the token's own ratio, clipped; they differ in how tokens are averaged."""

import torch
from torch import Tensor

from learner.losses.batch import TokenBatch
from learner.losses.ratios import clipped, clipped_surrogate, log_ratio
from learner.losses.surrogate import Surrogate, sequence_mean, token_mean
from learner.objective_settings import DapoSettings, GrpoSettings


class Grpo(GrpoSettings, frozen=True, tag="grpo"):
    """J = mean_i 1/|o_i| Σ_t min(r_t·Â, clip(r_t, 1 − low, 1 + high)·Â), r_t = π_θ/π_old (arXiv 2402.03300, Eq. 3)."""

    def __call__(self, batch: TokenBatch) -> Surrogate:
        weight, denominator = sequence_mean(batch)
        if self.max_tokens is not None:
            weight = torch.full_like(weight, 1.0 / self.max_tokens)
        return _token_surrogate(batch, self.clip_low, self.clip_high, weight, denominator)


class Dapo(DapoSettings, frozen=True, tag="dapo"):
    """J = Σ_i Σ_t min(…) / Σ_i |o_i|: GRPO's token term, every token counting alike (arXiv 2503.14476, Eq. 8)."""

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
