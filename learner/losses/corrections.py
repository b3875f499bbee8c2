"""Train–inference correction: how much a token that the rollout engine sampled counts for the proximal policy.

ρ_t = π_old(y_t)/π_rollout(y_t), from the log-probabilities the engine recorded. The weight is a constant of the update.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor

from learner.losses.batch import TokenBatch, usable
from learner.losses.metrics import peak, total
from learner.losses.ratios import LOG_RATIO_LIMIT, log_ratio
from learner.losses.segments import segment_mean, segment_sum
from learner.objective_settings import CORRECTIONS, CorrectionSettings, kind_of

Weigher = Callable[[TokenBatch], Tensor]
"""What a correction is to an objective: `(TokenBatch) -> weight [T]`."""


def truncated(ratio: Tensor, low: float, high: float) -> Tensor:
    """`tis`: clip(ρ, low, high), which is min(ρ, C) with low = 0 (truncated importance sampling, Yao et al. 2025)."""
    return ratio.clamp(low, high)


def masked(ratio: Tensor, low: float, high: float) -> Tensor:
    """`mis`, `icepop`: ρ·1[low ≤ ρ ≤ high]: what `tis` bounds is left out (Liu et al. 2025; arXiv 2510.18855)."""
    return torch.where(_inside(ratio, low, high), ratio, 0.0)


def accepted(ratio: Tensor, low: float, high: float) -> Tensor:
    """`geo`: 1[low ≤ ρ ≤ high]: a sequence counts whole or not at all."""
    return _inside(ratio, low, high).to(ratio.dtype)


def token_ratio(tokens: TokenBatch) -> Tensor:
    """ρ_t of each token, `[T]`."""
    return torch.exp(rollout_log_ratio(tokens))


def sequence_ratio(tokens: TokenBatch) -> Tensor:
    """Π_t ρ_t over the token's sequence, `[T]`; its logarithm is held within ±20."""
    product = segment_sum(rollout_log_ratio(tokens), tokens.seq, tokens.num_seqs)
    return torch.exp(product.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))[tokens.seq]


def geometric_ratio(tokens: TokenBatch) -> Tensor:
    """exp(mean_t log ρ_t) over the token's sequence, `[T]`: unlike the product it does not grow with the length."""
    return torch.exp(segment_mean(rollout_log_ratio(tokens), tokens.seq, tokens.num_seqs))[tokens.seq]


@dataclass(frozen=True)
class Kind:
    """A correction without its settings: how ρ becomes a weight, and which ρ a level means."""

    weigh: Callable[[Tensor, float, float], Tensor]
    ratios: Mapping[str, Callable[[TokenBatch], Tensor]]


_BOTH: Final = {"token": token_ratio, "sequence": sequence_ratio}
KINDS: Final[Mapping[str, Kind]] = {
    "tis": Kind(truncated, _BOTH),
    "mis": Kind(masked, _BOTH),
    "icepop": Kind(masked, _BOTH),
    "geo": Kind(accepted, {"sequence": geometric_ratio}),
}


@dataclass(frozen=True)
class Correction:
    """A callable `(TokenBatch) -> weight [T]`, detached; 0 for a token with a field that is not finite."""

    settings: CorrectionSettings

    def __call__(self, batch: TokenBatch) -> Tensor:
        tokens, keep = usable(batch)
        weight = torch.zeros_like(keep, dtype=tokens.logp.dtype)
        return weight.masked_scatter(keep, self._weigh(self.ratio(tokens)))

    def ratio(self, tokens: TokenBatch) -> Tensor:
        """ρ of the token, or that of its whole sequence, detached `[T]`."""
        return self._kind.ratios[self.settings.level](tokens)

    def metrics(self, tokens: TokenBatch, weight: Tensor) -> dict[str, Tensor]:
        """Shares of usable tokens rejected (weight 0) and clipped (weight neither 0 nor ρ), and the mean weight."""
        ratio = self.ratio(tokens)
        outside = ~_inside(ratio, self.settings.low, self.settings.high)
        return {
            "correction/weight": total(weight),
            "correction/ratio_max": peak(ratio),
            "correction/rejected": total(weight == 0),
            "correction/clipped": total((weight != 0) & outside),
        }

    def _weigh(self, ratio: Tensor) -> Tensor:
        return self._kind.weigh(ratio, self.settings.low, self.settings.high)

    @property
    def _kind(self) -> Kind:
        return KINDS[kind_of(self.settings)]


@dataclass(frozen=True)
class Uncorrected:
    """`none`: every usable token counts 1."""

    def __call__(self, batch: TokenBatch) -> Tensor:
        tokens, keep = usable(batch)
        return keep.to(tokens.logp.dtype)


def correction(name: str, **settings: Any) -> Correction | Uncorrected:
    """The correction `name` (`tis mis icepop geo none`) as a callable `(TokenBatch) -> weight [T]`.

    Settings: `low`, `high`, `level` ("token" or "sequence"); `none` has none.

    Raises:
        ValueError: unknown name or setting, or a value out of range. When called: `logp_rollout` is None.
    """
    if name != "none" and name not in KINDS:
        raise ValueError(f"Unknown correction {name!r}, allowed is {', '.join((*KINDS, 'none'))}.")
    allowed = () if name == "none" else ("low", "high", "level")
    for setting in settings:
        if setting not in allowed:
            raise ValueError(
                f"Correction {name!r} has no setting {setting!r}, allowed is {', '.join(allowed) or 'none'}."
            )
    if name == "none":
        return Uncorrected()
    return Correction(CORRECTIONS[name](**settings))


def bypass(batch: TokenBatch) -> TokenBatch:
    """The batch with the engine's log-probabilities as proximal policy (`old="rollout"`): no proximal pass."""
    return replace(batch, logp_old=_rollout(batch))


def rollout_log_ratio(batch: TokenBatch) -> Tensor:
    """log ρ_t = log π_old − log π_rollout, detached `[T]`, held within ±20."""
    return log_ratio(batch.logp_old.detach(), _rollout(batch).detach())


def _inside(ratio: Tensor, low: float, high: float) -> Tensor:
    return (ratio >= low) & (ratio <= high)


def _rollout(batch: TokenBatch) -> Tensor:
    if batch.logp_rollout is None:
        raise ValueError("TokenBatch.logp_rollout is None, allowed is a tensor [T] (the engine's log-probabilities).")
    return batch.logp_rollout
