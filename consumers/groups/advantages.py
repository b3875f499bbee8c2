"""Group-relative advantages (GRPO, arXiv 2402.03300, equation in section 4.1.2)."""

import math
from collections.abc import Sequence
from typing import Final, Literal, get_args

Normalise = Literal["std", "none", "loo"]
"""`std`: divided by the group's standard deviation; `none`: only centred (Dr. GRPO, arXiv 2503.20783); `loo`: minus the
mean of the *other* members (leave-one-out, arXiv 2402.14740)."""

ZERO_VARIANCE_STD: Final = 1e-6
_EPSILON: Final = 1e-6


def group_advantages(
    rewards: Sequence[float], valid: Sequence[bool], *, normalise: Normalise = "std"
) -> list[float] | None:
    """Advantage of each member of one group, or None where the valid members' rewards have zero variance.

    `rewards` `[members]` are the corrected rewards, `valid` `[members]` says whose verifier ran to a verdict. Mean and
    population standard deviation (ddof 0) are taken over the valid members; the others get 0.0. Zero variance means a
    standard deviation of at most 1e-6, so that no or one valid member has it too. Raises ValueError for sequences of
    different lengths, a valid reward that is not finite, or an unknown `normalise`.
    """
    if len(rewards) != len(valid):
        raise ValueError(f"{len(rewards)} rewards and {len(valid)} valid flags are not of one length")
    if normalise not in get_args(Normalise):
        raise ValueError(f"normalise {normalise!r} is not one of {', '.join(get_args(Normalise))}")
    counted = [float(reward) for reward, counts in zip(rewards, valid, strict=True) if counts]
    for reward in counted:
        if not math.isfinite(reward):
            raise ValueError(f"reward {reward} of a valid member is not finite")
    mean, std = mean_and_std(counted)
    if std <= ZERO_VARIANCE_STD:
        return None
    scale = _scale(normalise, std, len(counted))
    return [(float(reward) - mean) * scale if counts else 0.0 for reward, counts in zip(rewards, valid, strict=True)]


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and population standard deviation; (0, 0) of nothing."""
    if not values:
        return 0.0, 0.0
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))


def _scale(normalise: Normalise, std: float, members: int) -> float:
    match normalise:
        case "std":
            return 1.0 / (std + _EPSILON)
        case "none":
            return 1.0
        case "loo":
            # R_i − mean of the others = (R_i − mean of all) · n / (n − 1)
            return members / (members - 1)
