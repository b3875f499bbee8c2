"""Importance ratios, the clipped surrogate and the k3 estimator: the algebra that the objectives share."""

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0
"""Log-ratios are held within ±this: e^20 is far past any clip range and far from float32's limits."""


def log_ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """log of a probability ratio, `numerator − denominator`, held within ±20; no gradient where it is held."""
    return (numerator - denominator).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def at_value(ratio: Tensor, logp: Tensor) -> Tensor:
    """sg[ratio]·π_θ(y_t)/sg[π_θ(y_t)]: the value of `ratio`, the gradient of the token's own log-probability.

    The form of GSPO-token (arXiv 2507.18071, Eq. 14), which ESPO takes over for its groups.
    """
    return ratio.detach() * torch.exp(logp - logp.detach())


def clipped_surrogate(ratio: Tensor, advantage: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """min(s·Â, clip(s, 1 − low, 1 + high)·Â) of each token, to be maximised (PPO, arXiv 1707.06347, Eq. 7)."""
    bounded = torch.minimum(torch.maximum(ratio, _bound(1.0 - low, ratio)), _bound(1.0 + high, ratio))
    return torch.minimum(ratio * advantage, bounded * advantage)


def clipped(ratio: Tensor, advantage: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """Where the clip range stops the gradient, bool `[T]`: past the bound on the side that the advantage pushes to."""
    return ((ratio > 1.0 + high) & (advantage > 0)) | ((ratio < 1.0 - low) & (advantage < 0))


def k3(log_ratio_to_sampled: Tensor) -> Tensor:
    """e^x − 1 − x: unbiased, non-negative estimate of KL(p‖q) from samples of p, with x = log q − log p.

    J. Schulman, "Approximating KL Divergence" (2020).
    """
    return torch.expm1(log_ratio_to_sampled) - log_ratio_to_sampled


def _bound(value: Tensor | float, like: Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=like.dtype, device=like.device)
