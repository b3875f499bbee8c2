"""The settings of every objective and correction, and what they may be. No torch: judged before anything starts.

`[learner.objective]` and `[learner.correction]` are tagged by their `kind`. `learner.losses` adds the equations:
`class Espo(EspoSettings)` with a `__call__`. `kind = "custom"` names a function of the user's own.
"""

import re
from itertools import pairwise
from math import inf
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

RatioForm = Literal["group", "group_times_token"]
Level = Literal["token", "sequence"]

_IMPORT: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")

ClipLow = Annotated[float, Meta(ge=0, description="how far a ratio may fall below 1; from 1 on it is not bounded")]
ClipHigh = Annotated[float, Meta(ge=0, description="how far a ratio may rise above 1; inf: it is not bounded")]


class ObjectiveSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"):
    """What all objectives' settings are."""


class EspoSettings(ObjectiveSettings, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="espo"):
    """Settings of `learner.losses.espo.Espo`. ValueError where the fields do not fit together."""

    alpha: Annotated[
        float,
        Meta(ge=0, description="ε_τ = α·mean e_t / log|V|, e the entropy under π_old: the more certain, the tighter"),
    ] = 0.02
    top_fraction: Annotated[
        float,
        Meta(gt=0, le=1, description="share of a response's tokens, rounded up, in the group of highest entropy"),
    ] = 0.2
    boundaries: Annotated[
        tuple[float, ...] | None,
        Meta(
            description="rising quantiles in (0, 1) in place of top_fraction: K - 1 of them make K groups; [] is one "
            "group, [0.8] is top_fraction 0.2"
        ),
    ] = None
    ratio: Annotated[
        RatioForm,
        Meta(description="group: s = sg[s_τ]·π_θ/sg[π_θ]; group_times_token: sg[s_τ]·π_θ/sg[π_old], the paper's Eq. 9"),
    ] = "group"
    epsilon: Annotated[
        Annotated[float, Meta(ge=0)] | None,
        Meta(description="fixed clip range, both sides, in place of the adaptive one"),
    ] = None
    epsilon_floor: Annotated[float, Meta(ge=0, description="least adaptive ε_τ")] = 0.0
    clip_low: ClipLow | None = None
    clip_high: ClipHigh | None = None

    def __post_init__(self) -> None:
        for name in ("alpha", "epsilon_floor"):
            if not 0.0 <= getattr(self, name) < inf:
                raise ValueError(f"espo: {name} is {getattr(self, name)}, allowed is a finite number, 0 or more")
        if self.epsilon is not None and not self.epsilon >= 0.0:
            raise ValueError(f"espo: epsilon is {self.epsilon}, allowed is 0 or more, or none given")
        if not 0.0 < self.top_fraction <= 1.0:
            raise ValueError(f"espo: top_fraction is {self.top_fraction}, allowed is above 0 to 1")
        if self.ratio not in ("group", "group_times_token"):
            raise ValueError(f"espo: ratio is {self.ratio!r}, allowed is 'group' or 'group_times_token'")
        if self.boundaries is not None:
            edges = (0.0, *self.boundaries, 1.0)
            if any(not low < high for low, high in pairwise(edges)):
                raise ValueError(
                    f"espo: boundaries are {list(self.boundaries)}, allowed are rising values inside (0, 1)"
                )
        if (self.clip_low is None) != (self.clip_high is None):
            raise ValueError("espo: clip_low and clip_high are given together or not at all")
        if self.clip_low is not None and self.clip_high is not None:
            check_clip("espo", self.clip_low, self.clip_high)
            if self.epsilon is not None:
                raise ValueError("espo: epsilon and clip_low/clip_high both fix the clip range; give one of them")


class GrpoSettings(ObjectiveSettings, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="grpo"):
    """Settings of `learner.losses.grpo.Grpo`."""

    clip_low: ClipLow = 0.2
    clip_high: ClipHigh = 0.28
    max_tokens: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(
            description="1/max_tokens in place of 1/|o_i|, so that long wrong answers are not spared: Dr. GRPO "
            "(arXiv 2503.20783), which takes advantages that are not normalised"
        ),
    ] = None

    def __post_init__(self) -> None:
        check_clip("grpo", self.clip_low, self.clip_high)
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"grpo: max_tokens is {self.max_tokens}, allowed is 1 or more, or none given")


class DapoSettings(ObjectiveSettings, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="dapo"):
    """Settings of `learner.losses.grpo.Dapo`."""

    clip_low: ClipLow = 0.2
    clip_high: ClipHigh = 0.28

    def __post_init__(self) -> None:
        check_clip("dapo", self.clip_low, self.clip_high)


class GspoSettings(ObjectiveSettings, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="gspo"):
    """Settings of `learner.losses.gspo.Gspo`."""

    clip_low: ClipLow = 3e-4
    clip_high: ClipHigh = 4e-4

    def __post_init__(self) -> None:
        check_clip("gspo", self.clip_low, self.clip_high)


class CispoSettings(ObjectiveSettings, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="cispo"):
    """Settings of `learner.losses.cispo.Cispo`."""

    clip_low: ClipLow = 1.0
    clip_high: ClipHigh = 4.0

    def __post_init__(self) -> None:
        check_clip("cispo", self.clip_low, self.clip_high)


class GmpoSettings(ObjectiveSettings, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="gmpo"):
    """Settings of `learner.losses.gmpo.Gmpo`: bounds of the *log*-ratio."""

    clip_low: ClipLow = 0.4
    clip_high: ClipHigh = 0.4

    def __post_init__(self) -> None:
        check_clip("gmpo", self.clip_low, self.clip_high)


class CustomObjective(ObjectiveSettings, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="custom"):
    """A function `(TokenBatch, **settings) -> Surrogate` of the user's own, found by `learner.losses.custom`."""

    function: Annotated[str, Meta(description="module:function")] = msgspec.field(name="import")
    path: Annotated[str, Meta(description="directory with the module; empty: it is installed, or on PYTHONPATH")] = ""
    settings: Annotated[dict[str, Any], Meta(description="keyword arguments of the function")] = {}

    def __post_init__(self) -> None:
        check_import(self.function)


Objective = EspoSettings | GrpoSettings | DapoSettings | GspoSettings | CispoSettings | GmpoSettings | CustomObjective


class CorrectionSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"):
    """Which ratios ρ of its `level` a correction takes as they are: [low, high]. ValueError: low is above high."""

    low: Annotated[float, Meta(ge=0, description="lower bound of the ratio")]
    high: Annotated[float, Meta(ge=0, description="upper bound of the ratio")]
    level: Annotated[Level, Meta(description="ratios of tokens, or of sequences")]

    def __post_init__(self) -> None:
        name = kind_of(self)
        levels = ("sequence",) if name == "geo" else ("token", "sequence")
        if not 0.0 <= self.low <= self.high:
            raise ValueError(f"{name}: low is {self.low} and high is {self.high}, allowed is 0 ≤ low ≤ high")
        if self.level not in levels:
            raise ValueError(f"{name}: level is {self.level!r}, allowed is {' or '.join(map(repr, levels))}")


class NoCorrection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="none"):
    """Every token counts as it is."""


class TisSettings(CorrectionSettings, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="tis"):
    """Truncated importance sampling: clip(ρ, low, high)."""

    low: Annotated[float, Meta(ge=0)] = 0.0
    high: Annotated[float, Meta(ge=0)] = 2.0
    level: Level = "token"


class MisSettings(CorrectionSettings, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="mis"):
    """Masked importance sampling: ρ inside [low, high], 0 outside."""

    low: Annotated[float, Meta(ge=0)] = 0.5
    high: Annotated[float, Meta(ge=0)] = 2.0
    level: Level = "token"


class IcepopSettings(CorrectionSettings, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="icepop"):
    """As `mis`, with the bounds of arXiv 2510.18855."""

    low: Annotated[float, Meta(ge=0)] = 0.5
    high: Annotated[float, Meta(ge=0)] = 5.0
    level: Level = "token"


class GeoSettings(CorrectionSettings, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="geo"):
    """A sequence counts whole where the geometric mean of its ratios lies inside [low, high], or not at all."""

    low: Annotated[float, Meta(ge=0)] = 0.9
    high: Annotated[float, Meta(ge=0)] = 1.1
    level: Level = "sequence"


class CustomCorrection(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="custom"
):
    """A function `(TokenBatch, **settings) -> weight [T]` of the user's own, found by `learner.losses.custom`."""

    function: Annotated[str, Meta(description="module:function")] = msgspec.field(name="import")
    path: Annotated[str, Meta(description="directory with the module; empty: it is installed, or on PYTHONPATH")] = ""
    settings: Annotated[dict[str, Any], Meta(description="keyword arguments of the function")] = {}

    def __post_init__(self) -> None:
        check_import(self.function)


Correction = NoCorrection | TisSettings | MisSettings | IcepopSettings | GeoSettings | CustomCorrection

CORRECTIONS: Final[dict[str, type[CorrectionSettings]]] = {
    "tis": TisSettings,
    "mis": MisSettings,
    "icepop": IcepopSettings,
    "geo": GeoSettings,
}


def kind_of(settings: msgspec.Struct) -> str:
    """The `kind` by which a configuration names these settings."""
    return str(settings.__struct_config__.tag)


def check_clip(objective: str, clip_low: float, clip_high: float) -> None:
    """ValueError unless both are 0 or more; a `clip_low` of 1 or more and an infinite `clip_high` bound nothing."""
    for name, value in (("clip_low", clip_low), ("clip_high", clip_high)):
        if not value >= 0.0:
            raise ValueError(f"{objective}: {name} is {value}, allowed is 0 or more")


def check_import(function: str) -> None:
    """ValueError: it is not of the form `module:function`."""
    if not _IMPORT.fullmatch(function):
        raise ValueError(f"import is {function!r}; allowed: module:function, such as my_losses:loss")
