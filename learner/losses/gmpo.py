"""GMPO: the geometric mean of the tokens' clipped ratios."""

import torch

from learner.losses.batch import TokenBatch
from learner.losses.ratios import log_ratio
from learner.losses.segments import segment_mean
from learner.losses.surrogate import Surrogate, sequence_mean
from learner.objective_settings import GmpoSettings


class Gmpo(GmpoSettings, frozen=True, tag="gmpo"):
    """J = mean_i Â·Π_t min(r_t^σ, clip(r_t^σ, e^−low, e^high))^(σ/|o_i|), σ = sign(Â) (arXiv 2507.20673, Eq. 4).

    `clip_low` and `clip_high` bound the *log*-ratio here (the paper: 0.4 both). Since the minimum undoes every
    lower bound, only `clip_high` acts, on the side that the advantage pushes to; `clip_low` is there because the
    paper writes it.
    """

    def __call__(self, batch: TokenBatch) -> Surrogate:
        weight, denominator = sequence_mean(batch)
        sign = torch.sign(batch.advantage)
        pushed = sign * log_ratio(batch.logp, batch.logp_old)
        bounded = sign * torch.minimum(pushed, pushed.clamp(-self.clip_low, self.clip_high))
        ratio = torch.exp(segment_mean(bounded, batch.seq, batch.num_seqs))[batch.seq]
        return Surrogate(
            term=ratio * batch.advantage,
            weight=weight,
            denominator=denominator,
            ratio=ratio.detach(),
            clipped=(pushed > self.clip_high).detach(),
        )
