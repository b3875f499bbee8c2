"""From a name and settings to a callable `(TokenBatch) -> LossTerms`: the parts every objective has in common."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor

from learner.losses import corrections
from learner.losses.batch import LossTerms, TokenBatch, usable
from learner.losses.cispo import Cispo
from learner.losses.corrections import Correction, Weigher, bypass, rollout_log_ratio
from learner.losses.espo import Espo
from learner.losses.gmpo import Gmpo
from learner.losses.grpo import Dapo, Grpo
from learner.losses.gspo import Gspo
from learner.losses.metrics import peak, total
from learner.losses.ratios import LOG_RATIO_LIMIT, k3, log_ratio
from learner.losses.segments import rank_from_top, segment_count, segment_sum
from learner.losses.surrogate import PolicyObjective, Surrogate
from learner.objective_settings import ObjectiveSettings

OBJECTIVES: Mapping[str, type[ObjectiveSettings]] = {
    "espo": Espo,
    "grpo": Grpo,
    "dapo": Dapo,
    "gspo": Gspo,
    "cispo": Cispo,
    "gmpo": Gmpo,
}

_TOP_SHARE = 0.2


@dataclass(frozen=True)
class Objective:
    """A policy objective with its correction and KL term; pure, so one instance serves every micro-batch.

    Attributes:
        policy: the policy objective with its settings.
        correction: weight of each token's term, or None.
        old: "proximal" compares with `logp_old`, "rollout" with the engine's log-probabilities (no proximal pass).
        kl: coefficient of the k3 estimate of KL(π_θ‖π_ref), averaged as the objective averages its tokens.
    """

    policy: PolicyObjective
    correction: Weigher | None = None
    old: Literal["proximal", "rollout"] = "proximal"
    kl: float = 0.0

    def __call__(self, batch: TokenBatch) -> LossTerms:
        """Per-sequence numerators and denominators of the loss −J.

        Raises:
            ValueError: the batch lacks a field that the settings need.
        """
        if self.old == "rollout":
            batch = bypass(batch)
        tokens, keep = usable(batch)
        surrogate = self.policy(tokens)
        metrics = {"nonfinite": total(~keep), **_policy_metrics(tokens, surrogate), **_rollout_metrics(tokens)}
        gain = surrogate.term
        if self.correction is not None:
            weight = self.correction(tokens).detach().to(gain.dtype)
            gain = gain * weight
            if isinstance(self.correction, Correction):
                metrics.update(self.correction.metrics(tokens, weight))
        loss = -gain
        if self.kl > 0.0:
            divergence = _reference_divergence(tokens)
            metrics["kl_ref"] = total(divergence)
            loss = loss + self.kl * divergence
        numerator = segment_sum(surrogate.weight * loss, tokens.seq, tokens.num_seqs)
        metrics["loss"] = torch.stack((numerator.detach().sum(), surrogate.denominator.sum())).to(torch.float64)
        return LossTerms(numerator, surrogate.denominator, metrics)


def objective(
    name: str,
    *,
    correction: Weigher | str | None = None,
    old: Literal["proximal", "rollout"] = "proximal",
    kl: float = 0.0,
    **settings: Any,
) -> Objective:
    """The objective `name` (`espo grpo dapo gspo cispo gmpo`) with its settings.

    Args:
        name: see the class of the same name for its equation and settings (`clip_low`, `clip_high`, and for `espo`
            `alpha`, `top_fraction`, `boundaries`, `ratio`, `epsilon`, `epsilon_floor`; for `grpo` `max_tokens`).
        correction: from `learner.losses.correction`, any callable `(TokenBatch) -> weight [T]`, or a correction's name.
        old: "proximal" or "rollout".
        kl: coefficient, 0 or more, of the KL term; above 0 it needs `TokenBatch.logp_ref`.

    Raises:
        ValueError: unknown name or setting, or a value out of range.
    """
    if name not in OBJECTIVES:
        raise ValueError(f"Unknown objective {name!r}, allowed is {', '.join(OBJECTIVES)}.")
    policy_class = OBJECTIVES[name]
    allowed = policy_class.__struct_fields__
    for setting in settings:
        if setting not in allowed:
            raise ValueError(f"Objective {name!r} has no setting {setting!r}, allowed is {', '.join(allowed)}.")
    if old not in ("proximal", "rollout"):
        raise ValueError(f"Objective {name!r}: old is {old!r}, allowed is 'proximal' or 'rollout'.")
    if not kl >= 0.0:
        raise ValueError(f"Objective {name!r}: kl is {kl}, allowed is 0 or more.")
    weigher = corrections.correction(correction) if isinstance(correction, str) else correction
    return Objective(cast(PolicyObjective, policy_class(**settings)), weigher, old, kl)


def _reference_divergence(tokens: TokenBatch) -> Tensor:
    if tokens.logp_ref is None:
        raise ValueError("TokenBatch.logp_ref is None, allowed is a tensor [T] when kl is above 0.")
    return k3(log_ratio(tokens.logp_ref, tokens.logp))


def _policy_metrics(tokens: TokenBatch, surrogate: Surrogate) -> dict[str, Tensor]:
    delta = (tokens.logp - tokens.logp_old).detach()
    metrics = {
        "ratio": total(surrogate.ratio),
        "ratio_max": peak(surrogate.ratio),
        "clip_fraction": total(surrogate.clipped),
        "policy_k3": total(k3(-delta.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))),
        "log_ratio_held": total(delta.abs() > LOG_RATIO_LIMIT),
        **surrogate.metrics,
    }
    if tokens.entropy_old is not None:
        top = _top_tokens(tokens) if surrogate.top is None else surrogate.top
        metrics |= {
            "entropy": total(tokens.entropy_old),
            "entropy/high": total(tokens.entropy_old, top),
            "entropy/low": total(tokens.entropy_old, ~top),
            "clip_fraction/high": total(surrogate.clipped, top),
            "clip_fraction/low": total(surrogate.clipped, ~top),
        }
    return metrics


def _top_tokens(tokens: TokenBatch) -> Tensor:
    """The ⌈20 %⌉ highest-entropy tokens of each response: ESPO's default split, so that objectives can be compared."""
    assert tokens.entropy_old is not None
    rank = rank_from_top(tokens.entropy_old, tokens.seq, tokens.num_seqs)
    lengths = segment_count(tokens.seq, tokens.num_seqs)
    return rank < torch.ceil(lengths.to(torch.float64) * _TOP_SHARE - 1e-9)[tokens.seq]


def _rollout_metrics(tokens: TokenBatch) -> dict[str, Tensor]:
    """How far the trainer's proximal policy is from the engine: k3 of KL(π_rollout‖π_old), mean and max |Δ log p|."""
    if tokens.logp_rollout is None:
        return {}
    delta = rollout_log_ratio(tokens)
    return {
        "rollout_k3": total(k3(delta)),
        "rollout_abs_delta": total(delta.abs()),
        "rollout_abs_delta_max": peak(delta.abs()),
    }
