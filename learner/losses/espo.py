"""ESPO: one ratio and one clip range for each entropy group of a response (arXiv 2512.00499)."""

import math

import torch
from torch import Tensor

from learner.losses.batch import TokenBatch
from learner.losses.metrics import total
from learner.losses.ratios import at_value, clipped, clipped_surrogate, log_ratio
from learner.losses.segments import rank_from_top, segment_count, segment_mean, segment_sum
from learner.losses.surrogate import Surrogate
from learner.objective_settings import EspoSettings


class Espo(EspoSettings, frozen=True, tag="espo"):
    """J = mean_i mean_τ mean_{t∈τ} min(s·Â, clip(s, 1 − ε_τ, 1 + ε_τ)·Â), τ the non-empty entropy groups of i."""

    def __call__(self, batch: TokenBatch) -> Surrogate:
        group, groups = self.groups(batch)
        segment = batch.seq * groups + group
        segments = batch.num_seqs * groups
        group_ratio = self.group_ratio(batch, segment, segments)
        low, high = self.clip_range(batch, segment, segments)
        ratio = self.token_ratio(batch, group_ratio[segment])
        weight, denominator = _mean_of_group_means(batch, segment, groups)
        is_clipped = clipped(ratio.detach(), batch.advantage, low, high)
        metrics = {"group_ratio": total(group_ratio[segment]), "epsilon": total(high)}
        for index in range(groups) if 2 < groups <= 8 else ():
            metrics[f"clip_fraction/group{index}"] = total(is_clipped, group == index)
        return Surrogate(
            term=clipped_surrogate(ratio, batch.advantage, low, high),
            weight=weight,
            denominator=denominator,
            ratio=ratio.detach(),
            clipped=is_clipped,
            top=group == 0,
            metrics={**metrics, **_by_group("epsilon", high, group == 0)},
        )

    def groups(self, batch: TokenBatch) -> tuple[Tensor, int]:
        """Entropy group of each token, int64 `[T]`, 0 the one of highest entropy, and their number K."""
        shares = (self.top_fraction,) if self.boundaries is None else tuple(1.0 - b for b in reversed(self.boundaries))
        if not shares or shares == (1.0,):
            return torch.zeros_like(batch.seq), 1
        entropy = self._entropy(batch)
        rank = rank_from_top(entropy, batch.seq, batch.num_seqs)
        lengths = segment_count(batch.seq, batch.num_seqs).to(torch.float64)
        group = torch.zeros_like(batch.seq)
        for share in shares:
            # 0.3 · 10 is 3.0000000000000004 in binary: without the slack one more token would count as high-entropy.
            above = torch.ceil(lengths * share - 1e-9).to(torch.int64)
            group += rank >= above[batch.seq]
        return group, len(shares) + 1

    def group_ratio(self, batch: TokenBatch, segment: Tensor, segments: int) -> Tensor:
        """s_τ = exp(mean_{t∈τ} log π_θ/π_old), detached `[segments]` (Eq. 7)."""
        delta = log_ratio(batch.logp.detach(), batch.logp_old)
        return torch.exp(segment_mean(delta, segment, segments))

    def token_ratio(self, batch: TokenBatch, group_ratio: Tensor) -> Tensor:
        """s of each token, `[T]`, with the gradient of its own log-probability."""
        if self.ratio == "group":
            return at_value(group_ratio, batch.logp)
        return group_ratio * torch.exp(log_ratio(batch.logp, batch.logp_old))

    def clip_range(self, batch: TokenBatch, segment: Tensor, segments: int) -> tuple[Tensor, Tensor]:
        """(low, high) of each token, `[T]`; ε_τ = α·mean_{t∈τ} e_t / log|V|, no less than the floor."""
        ones = torch.ones_like(batch.advantage)
        if self.clip_low is not None and self.clip_high is not None:
            return self.clip_low * ones, self.clip_high * ones
        if self.epsilon is not None:
            return self.epsilon * ones, self.epsilon * ones
        if batch.vocab_size is None or batch.vocab_size < 2:
            raise ValueError(
                f"espo: TokenBatch.vocab_size is {batch.vocab_size}, allowed is 2 or more when epsilon is adaptive."
            )
        mean_entropy = segment_mean(self._entropy(batch), segment, segments)
        epsilon = (self.alpha / math.log(batch.vocab_size)) * mean_entropy
        epsilon = epsilon.clamp(min=self.epsilon_floor)[segment]
        return epsilon, epsilon

    def _entropy(self, batch: TokenBatch) -> Tensor:
        if batch.entropy_old is None:
            raise ValueError(
                "espo: TokenBatch.entropy_old is None, allowed is a tensor [T] (entropy under the old policy)."
            )
        return batch.entropy_old.detach()


def _mean_of_group_means(batch: TokenBatch, segment: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """(weight `[T]` = 1/(K_i·|τ|), denominator `[S]`), K_i the non-empty groups of the token's response."""
    dtype = batch.logp.dtype
    sizes = segment_count(segment, batch.num_seqs * groups)
    sequence_of = torch.arange(sizes.numel(), device=sizes.device) // groups
    occupied = segment_sum((sizes > 0).to(dtype), sequence_of, batch.num_seqs)
    weight = 1.0 / (occupied[batch.seq] * sizes[segment])
    return weight, (occupied > 0).to(dtype)


def _by_group(name: str, values: Tensor, top: Tensor) -> dict[str, Tensor]:
    return {f"{name}/high": total(values, top), f"{name}/low": total(values, ~top)}
