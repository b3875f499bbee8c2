"""Train–inference correction: how much a token that the rollout engine sampled counts for the proximal policy.

ρ_t = π_old(y_t)/π_rollout(y_t), from the log-probabilities the engine recorded. The weight is a constant of the update.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from learner.losses.batch import TokenBatch, usable
from learner.losses.metrics import peak, total
from learner.losses.ratios import LOG_RATIO_LIMIT, log_ratio
from learner.losses.segments import segment_mean, segment_sum

Level = Literal["token", "sequence"]
Weigher = Callable[[TokenBatch], Tensor]
"""What a correction is to an objective: `(TokenBatch) -> weight [T]`."""


class Correction:
    """Base: a callable `(TokenBatch) -> weight [T]`, detached; 0 for a token with a field that is not finite."""

    low: float
    high: float
    level: Level

    def __call__(self, batch: TokenBatch) -> Tensor:
        tokens, keep = usable(batch)
        weight = torch.zeros_like(keep, dtype=tokens.logp.dtype)
        return weight.masked_scatter(keep, self.weigh(self.ratio(tokens)))

    def weigh(self, ratio: Tensor) -> Tensor:
        """Weight of each token `[T]` given its ratio ρ `[T]`."""
        raise NotImplementedError

    def ratio(self, tokens: TokenBatch) -> Tensor:
        """ρ `[T]`: the token's own, or the product over its sequence; the logarithm is held within ±20."""
        delta = rollout_log_ratio(tokens)
        if self.level == "sequence":
            delta = segment_sum(delta, tokens.seq, tokens.num_seqs)[tokens.seq]
        return torch.exp(delta.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))

    def metrics(self, tokens: TokenBatch, weight: Tensor) -> dict[str, Tensor]:
        """Shares of usable tokens rejected (weight 0) and bounded (weight neither 0 nor ρ), and the mean weight."""
        ratio = self.ratio(tokens)
        return {
            "correction/weight": total(weight),
            "correction/ratio_max": peak(ratio),
            "correction/rejected": total(weight == 0),
            "correction/clipped": total((weight != 0) & ((ratio < self.low) | (ratio > self.high))),
        }

    def _check(self, name: str, levels: tuple[str, ...] = get_args(Level)) -> None:
        if not 0.0 <= self.low <= self.high:
            raise ValueError(f"{name}: low is {self.low} and high is {self.high}, allowed is 0 ≤ low ≤ high.")
        if self.level not in levels:
            raise ValueError(f"{name}: level is {self.level!r}, allowed is {' or '.join(map(repr, levels))}.")


@dataclass(frozen=True)
class Truncated(Correction):
    """`tis`: sg[clip(ρ, low, high)], min(ρ, C) with low = 0 (truncated importance sampling, Yao et al. 2025)."""

    low: float = 0.0
    high: float = 2.0
    level: Level = "token"

    def __post_init__(self) -> None:
        self._check("tis")

    def weigh(self, ratio: Tensor) -> Tensor:
        return ratio.clamp(self.low, self.high)


@dataclass(frozen=True)
class Masked(Correction):
    """`mis`: ρ·1[low ≤ ρ ≤ high]: what `tis` bounds is left out (masked importance sampling, Liu et al. 2025)."""

    low: float = 0.5
    high: float = 2.0
    level: Level = "token"

    def __post_init__(self) -> None:
        self._check("mis")

    def weigh(self, ratio: Tensor) -> Tensor:
        return torch.where((ratio >= self.low) & (ratio <= self.high), ratio, 0.0)


@dataclass(frozen=True)
class IcePop(Masked):
    """`icepop`: the same double-sided mask with the range 0.5 to 5 (Ring-1T, arXiv 2510.18855)."""

    high: float = 5.0

    def __post_init__(self) -> None:
        self._check("icepop")


@dataclass(frozen=True)
class Geometric(Correction):
    """`geo`: a sequence counts whole or not at all, by exp(mean_t log ρ_t), which does not grow with its length."""

    low: float = 0.9
    high: float = 1.1
    level: Level = "sequence"

    def __post_init__(self) -> None:
        self._check("geo", levels=("sequence",))

    def ratio(self, tokens: TokenBatch) -> Tensor:
        return torch.exp(segment_mean(rollout_log_ratio(tokens), tokens.seq, tokens.num_seqs))[tokens.seq]

    def weigh(self, ratio: Tensor) -> Tensor:
        return ((ratio >= self.low) & (ratio <= self.high)).to(ratio.dtype)


@dataclass(frozen=True)
class Uncorrected:
    """`none`: every usable token counts 1."""

    def __call__(self, batch: TokenBatch) -> Tensor:
        tokens, keep = usable(batch)
        return keep.to(tokens.logp.dtype)


_CORRECTIONS: dict[str, Callable[..., Weigher]] = {
    "tis": Truncated,
    "mis": Masked,
    "icepop": IcePop,
    "geo": Geometric,
    "none": Uncorrected,
}


def correction(name: str, **settings: Any) -> Weigher:
    """The correction `name` (`tis mis icepop geo none`) as a callable `(TokenBatch) -> weight [T]`.

    Settings: `low`, `high`, `level` ("token" or "sequence"); `none` has none.

    Raises:
        ValueError: unknown name or setting, or a value out of range. When called: `logp_rollout` is None.
    """
    if name not in _CORRECTIONS:
        raise ValueError(f"Unknown correction {name!r}, allowed is {', '.join(_CORRECTIONS)}.")
    build = _CORRECTIONS[name]
    allowed = [field.name for field in fields(build)]  # type: ignore[arg-type]
    for setting in settings:
        if setting not in allowed:
            raise ValueError(
                f"Correction {name!r} has no setting {setting!r}, allowed is {', '.join(allowed) or 'none'}."
            )
    return build(**settings)


def bypass(batch: TokenBatch) -> TokenBatch:
    """The batch with the engine's log-probabilities as proximal policy (`old="rollout"`): no proximal pass."""
    return replace(batch, logp_old=_rollout(batch))


def rollout_log_ratio(batch: TokenBatch) -> Tensor:
    """log ρ_t = log π_old − log π_rollout, detached `[T]`, held within ±20."""
    return log_ratio(batch.logp_old.detach(), _rollout(batch).detach())


def _rollout(batch: TokenBatch) -> Tensor:
    if batch.logp_rollout is None:
        raise ValueError("TokenBatch.logp_rollout is None, allowed is a tensor [T] (the engine's log-probabilities).")
    return batch.logp_rollout
