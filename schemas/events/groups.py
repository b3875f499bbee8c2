"""How a group of rollouts is closed: ready to be trained on, dropped, or measured as a held-back one."""

from schemas.events.base import EventBase
from schemas.parts import Count, Disposition, Finite, Member, Time, Unanimous


class GroupReady(EventBase, frozen=True, kw_only=True):
    """A group to be trained on, but for the members that have a `disposition`.

    Its rewards have variance, or it is `unanimous` and the members' advantages (0 here) are made by the learner.
    """

    group_id: str
    prompt_id: str
    task: str
    members: tuple[Member, ...]
    reward_mean: Finite
    reward_std: Finite
    time_s: Time
    deadline_s: Time
    pass_rate: Finite | None = None
    partial: bool = False
    requested_s: Time = 0.0
    unanimous: Unanimous | None = None


class GroupDropped(EventBase, frozen=True, kw_only=True):
    """A group that will not be trained on: each member's disposition is its end."""

    group_id: str
    prompt_id: str
    task: str
    reason: Disposition
    members: tuple[Member, ...]
    time_s: Time
    pass_rate: Finite | None = None
    reward_mean: Finite = 0.0
    requested_s: Time = 0.0


class GroupEvaluated(EventBase, frozen=True, kw_only=True):
    """A held-back group: measured, never trained on. `evaluation` is the step after which its round was asked for."""

    group_id: str
    prompt_id: str
    task: str
    evaluation: Count
    members: tuple[Member, ...]
    time_s: Time
    pass_rate: Finite | None = None
    reward_mean: Finite = 0.0
    requested_s: Time = 0.0
