"""Settings of the group aggregator."""

from typing import Annotated

import msgspec
from msgspec import Meta

from consumers.advantages import Normalise


class GroupSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How groups are closed and what their members' advantages are."""

    min_samples: Annotated[
        int, Meta(ge=2, description="valid rollouts with which a group is still trained on at its deadline")
    ] = 2
    normalise: Annotated[
        Normalise,
        Meta(description="advantages: std (divided by the deviation), none (only centred), loo (leave-one-out)"),
    ] = "std"
    longest_s: Annotated[
        float,
        Meta(gt=0, description="seconds a group stays open at most, whatever deadline its scores claim"),
    ] = 86_400.0
    settle_s: Annotated[
        float,
        Meta(gt=0, description="seconds a group stays open at least, even if found after its deadline (a backlog)"),
    ] = 5.0
    remember_s: Annotated[
        float,
        Meta(
            gt=0,
            description="seconds a closed group is remembered, so that its stragglers and repeated scores are known; "
            "longer than the longest outage of a reward consumer plus a group's time to its deadline",
        ),
    ] = 3600.0
