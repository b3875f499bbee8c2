"""Settings of the group aggregator."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from consumers.groups.advantages import Normalise


class GroupSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How groups are closed and what their members' advantages are."""

    min_samples: Annotated[
        int, Meta(ge=2, description="valid rollouts with which a group is still trained on at its deadline")
    ] = 2
    normalise: Annotated[
        Normalise,
        Meta(description="advantages: std (divided by the deviation), none (only centred), loo (leave-one-out)"),
    ] = "std"
    zero_variance: Annotated[
        Literal["drop", "shape"],
        Meta(
            description="a group whose rewards have no variance: drop, or shape (all passed or all failed: trained on "
            "with advantages that the learner makes of the entropies, RL-ZVP)"
        ),
    ] = "drop"
    longest_s: Annotated[
        float,
        Meta(gt=0, description="seconds a group stays open at most, whatever deadline its scores claim"),
    ] = 86_400.0
    settle_s: Annotated[
        float,
        Meta(gt=0, description="seconds a group stays open at least, even if found after its deadline (a backlog)"),
    ] = 5.0
    unheard_s: Annotated[
        float,
        Meta(
            gt=0,
            description="seconds after its deadline at which a training group ends of which no rollout was scored; "
            "below the dispatcher's outcome_grace_s, so that the slot is freed by the group's own end",
        ),
    ] = 60.0
    remember_s: Annotated[
        float,
        Meta(
            gt=0,
            description="seconds a closed group is remembered; groups that were requested earlier and are not open end "
            "as expired, so it is longer than the dispatcher's group_timeout_s and the longest outage to bridge",
        ),
    ] = 3600.0
    remember_groups: Annotated[
        int,
        Meta(ge=1, description="closed groups remembered at most, of each partition; 270 bytes each with 8 samples"),
    ] = 100_000
