"""Closing a group: one event that gives every member its disposition or its advantage."""

import math
from collections.abc import Sequence

from consumers.groups.advantages import group_advantages, mean_and_std
from consumers.groups.open_groups import Asked
from consumers.groups.settings import GroupSettings
from schemas import Disposition, GroupDropped, GroupEvaluated, GroupReady, Member, RolloutScored, Unanimous


def close_group(
    scores: Sequence[RolloutScored], settings: GroupSettings, now_s: float
) -> GroupReady | GroupDropped | GroupEvaluated:
    """The event that closes the group of `scores`: distinct rollouts of one group, at least one. Pure.

    `partial` where there are fewer than were requested. A member whose verifier gave no result always ends as
    `invalid`. What happens to the others:

    | the group | event | the others |
    |---|---|---|
    | purpose `evaluate` | GroupEvaluated | evaluated |
    | no valid member | GroupDropped(invalid) | - |
    | partial, fewer than `min_samples` valid | GroupDropped(expired) | expired |
    | valid members' rewards without variance (also: one valid) | GroupDropped(zero_variance) | zero_variance |
    | the same, two or more, all passed or all failed, `zero_variance = "shape"` | GroupReady(unanimous) | none yet |
    | else | GroupReady | none yet, they are trained on |
    """
    first = scores[0]
    scores = sorted(scores, key=lambda score: (score.index, score.rollout_id))
    valid = [score for score in scores if score.valid]
    reward_mean, reward_std = mean_and_std([score.reward for score in valid])
    passes = [score.passed for score in valid if score.passed is not None]
    pass_rate = math.fsum(passes) / len(passes) if passes else None
    partial = len(scores) < first.samples
    if first.purpose == "evaluate":
        return GroupEvaluated(
            group_id=first.group_id,
            prompt_id=first.prompt_id,
            task=first.task,
            evaluation=first.evaluation or 0,
            members=_ended(scores, "evaluated"),
            time_s=now_s,
            pass_rate=pass_rate,
            reward_mean=reward_mean,
            requested_s=first.requested_s,
        )
    advantages = group_advantages(
        [score.reward for score in scores], [score.valid for score in scores], normalise=settings.normalise
    )
    unanimous = None
    if advantages is None and settings.zero_variance == "shape" and (unanimous := unanimity(valid)) is not None:
        advantages = [0.0] * len(scores)
    reason = _reason(partial, len(valid), settings.min_samples, advantages is None)
    if reason is None and advantages is not None:
        return GroupReady(
            group_id=first.group_id,
            prompt_id=first.prompt_id,
            task=first.task,
            members=tuple(
                _member(score, None if score.valid else "invalid", advantage)
                for score, advantage in zip(scores, advantages, strict=True)
            ),
            reward_mean=reward_mean,
            reward_std=reward_std,
            time_s=now_s,
            deadline_s=first.deadline_s,
            pass_rate=pass_rate,
            partial=partial,
            requested_s=first.requested_s,
            unanimous=unanimous,
        )
    return GroupDropped(
        group_id=first.group_id,
        prompt_id=first.prompt_id,
        task=first.task,
        reason=reason or "zero_variance",
        members=_ended(scores, reason or "zero_variance"),
        time_s=now_s,
        pass_rate=pass_rate,
        reward_mean=reward_mean,
        requested_s=first.requested_s,
    )


def unheard_group(group_id: str, asked: Asked, now_s: float) -> GroupDropped | GroupEvaluated:
    """The event that closes a group of which no rollout was scored in time: it has no members."""
    if asked.purpose == "evaluate":
        return GroupEvaluated(
            group_id=group_id,
            prompt_id=asked.prompt_id,
            task=asked.task,
            evaluation=asked.evaluation or 0,
            members=(),
            time_s=now_s,
            requested_s=asked.requested_s,
        )
    return GroupDropped(
        group_id=group_id,
        prompt_id=asked.prompt_id,
        task=asked.task,
        reason="expired",
        members=(),
        time_s=now_s,
        requested_s=asked.requested_s,
    )


def unanimity(valid: Sequence[RolloutScored]) -> Unanimous | None:
    """`correct` where two or more members all have pass rate 1, `wrong` where all have 0, else None."""
    passed = {score.passed for score in valid}
    if len(valid) < 2 or passed not in ({1.0}, {0.0}):
        return None
    return "correct" if passed == {1.0} else "wrong"


def _reason(partial: bool, valid: int, min_samples: int, flat: bool) -> Disposition | None:
    if valid == 0:
        return "invalid"
    if partial and valid < min_samples:
        return "expired"
    return "zero_variance" if flat else None


def _ended(scores: Sequence[RolloutScored], disposition: Disposition) -> tuple[Member, ...]:
    return tuple(_member(score, disposition if score.valid else "invalid", 0.0) for score in scores)


def _member(score: RolloutScored, disposition: Disposition | None, advantage: float) -> Member:
    return Member(
        rollout_id=score.rollout_id,
        rollout=score.rollout,
        reward=score.reward,
        advantage=advantage,
        passed=score.passed,
        prompt_tokens=score.prompt_tokens,
        response_tokens=score.response_tokens,
        oldest_version=score.oldest_version,
        newest_version=score.newest_version,
        disposition=disposition,
    )
