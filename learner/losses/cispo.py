"""CISPO: the ratio is clipped, the gradient is not."""

import torch

from learner.losses.batch import TokenBatch
from learner.losses.ratios import log_ratio
from learner.losses.surrogate import Surrogate, token_mean
from learner.objective_settings import CispoSettings


class Cispo(CispoSettings, frozen=True, tag="cispo"):
    """J = Σ_i Σ_t sg[clip(r_t, 1 − low, 1 + high)]·Â·log π_θ(y_t) / Σ_i |o_i| (MiniMax-M1, arXiv 2506.13585, Eq. 4, 5).

    No token is ever without a gradient. clip_low = 1 leaves the ratio unbounded below, as the paper does.
    """

    def __call__(self, batch: TokenBatch) -> Surrogate:
        weight, denominator = token_mean(batch)
        ratio = torch.exp(log_ratio(batch.logp.detach(), batch.logp_old))
        bounded = ratio.clamp(1.0 - self.clip_low, 1.0 + self.clip_high)
        return Surrogate(
            term=bounded * batch.advantage * batch.logp,
            weight=weight,
            denominator=denominator,
            ratio=ratio,
            clipped=bounded != ratio,
        )
