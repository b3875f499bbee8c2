"""GSPO: one ratio for a sequence, the geometric mean of its tokens' ratios."""

import torch

from learner.losses.batch import TokenBatch
from learner.losses.ratios import at_value, clipped, clipped_surrogate, log_ratio
from learner.losses.segments import segment_mean
from learner.losses.surrogate import Surrogate, sequence_mean
from learner.objective_settings import GspoSettings


class Gspo(GspoSettings, frozen=True, tag="gspo"):
    """J = mean_i min(s_i·Â, clip(s_i, 1 − low, 1 + high)·Â), s_i = exp(1/|y_i| Σ_t log π_θ/π_old).

    arXiv 2507.18071, Eq. 5 and 7. Written in its token form (Eq. 13 and 14), which has the same value and gradient
    where the advantage is the same for all tokens of a response, and is right where it is not.
    """

    def __call__(self, batch: TokenBatch) -> Surrogate:
        weight, denominator = sequence_mean(batch)
        delta = log_ratio(batch.logp.detach(), batch.logp_old)
        sequence_ratio = torch.exp(segment_mean(delta, batch.seq, batch.num_seqs))
        ratio = at_value(sequence_ratio[batch.seq], batch.logp)
        return Surrogate(
            term=clipped_surrogate(ratio, batch.advantage, self.clip_low, self.clip_high),
            weight=weight,
            denominator=denominator,
            ratio=ratio.detach(),
            clipped=clipped(ratio.detach(), batch.advantage, self.clip_low, self.clip_high),
        )
