"""The settings of every objective and correction, and what they may be. No torch: judged before anything starts.

`learner.losses` adds the equations: `class Espo(EspoSettings)` with a `__call__`. ValueError everywhere, one sentence.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from typing import Any, Final, Literal, get_args, get_type_hints

import msgspec

RatioForm = Literal["group", "group_times_token"]


@dataclass(frozen=True)
class EspoSettings:
    """Settings of `learner.losses.espo.Espo`.

    Attributes:
        alpha: ε_τ = α·mean_{t∈τ} e_t / log|V|, e the entropy under π_old: the more certain, the tighter.
        top_fraction: share of a response's tokens, rounded up, in the high-entropy group; the rest is the other group.
        boundaries: rising quantiles in (0, 1) in place of `top_fraction`: K − 1 of them make K groups, ⌈(1 − b)·n⌉
            tokens lie above boundary b; `()` is a single group, and `(0.8,)` is `top_fraction=0.2`.
        ratio: "group": s = sg[s_τ]·π_θ/sg[π_θ]; "group_times_token": sg[s_τ]·π_θ/sg[π_old], the paper's printed Eq. 9.
        epsilon: fixed clip range, both sides, in place of the adaptive one.
        epsilon_floor: least adaptive ε_τ.
        clip_low, clip_high: fixed clip range with two sides, in place of `epsilon`.
    """

    alpha: float = 0.02
    top_fraction: float = 0.2
    boundaries: Sequence[float] | None = None
    ratio: RatioForm = "group"
    epsilon: float | None = None
    epsilon_floor: float = 0.0
    clip_low: float | None = None
    clip_high: float | None = None

    def __post_init__(self) -> None:
        for name in ("alpha", "epsilon_floor"):
            if not 0.0 <= getattr(self, name) < inf:
                raise ValueError(f"espo: {name} is {getattr(self, name)}, allowed is a finite number, 0 or more.")
        if self.epsilon is not None and not self.epsilon >= 0.0:
            raise ValueError(f"espo: epsilon is {self.epsilon}, allowed is 0 or more, or none given.")
        if not 0.0 < self.top_fraction <= 1.0:
            raise ValueError(f"espo: top_fraction is {self.top_fraction}, allowed is above 0 to 1.")
        if self.ratio not in get_args(RatioForm):
            raise ValueError(
                f"espo: ratio is {self.ratio!r}, allowed is {' or '.join(map(repr, get_args(RatioForm)))}."
            )
        if self.boundaries is not None:
            edges = (0.0, *self.boundaries, 1.0)
            if any(not low < high for low, high in pairwise(edges)):
                raise ValueError(
                    f"espo: boundaries are {list(self.boundaries)}, allowed are rising values inside (0, 1)."
                )
        if (self.clip_low is None) != (self.clip_high is None):
            raise ValueError("espo: clip_low and clip_high are given together or not at all.")
        if self.clip_low is not None and self.clip_high is not None:
            check_clip("espo", self.clip_low, self.clip_high)
            if self.epsilon is not None:
                raise ValueError("espo: epsilon and clip_low/clip_high both fix the clip range; give one of them.")


@dataclass(frozen=True)
class GrpoSettings:
    """Settings of `learner.losses.grpo.Grpo`.

    Attributes:
        max_tokens: where given, 1/max_tokens replaces 1/|o_i|, so that long wrong answers are not spared:
            Dr. GRPO (arXiv 2503.20783). Takes unnormalised advantages to go with it.
    """

    clip_low: float = 0.2
    clip_high: float = 0.28
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        check_clip("grpo", self.clip_low, self.clip_high)
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"grpo: max_tokens is {self.max_tokens}, allowed is 1 or more, or none given.")


@dataclass(frozen=True)
class DapoSettings:
    """Settings of `learner.losses.grpo.Dapo`."""

    clip_low: float = 0.2
    clip_high: float = 0.28

    def __post_init__(self) -> None:
        check_clip("dapo", self.clip_low, self.clip_high)


@dataclass(frozen=True)
class GspoSettings:
    """Settings of `learner.losses.gspo.Gspo`."""

    clip_low: float = 3e-4
    clip_high: float = 4e-4

    def __post_init__(self) -> None:
        check_clip("gspo", self.clip_low, self.clip_high)


@dataclass(frozen=True)
class CispoSettings:
    """Settings of `learner.losses.cispo.Cispo`."""

    clip_low: float = 1.0
    clip_high: float = 4.0

    def __post_init__(self) -> None:
        check_clip("cispo", self.clip_low, self.clip_high)


@dataclass(frozen=True)
class GmpoSettings:
    """Settings of `learner.losses.gmpo.Gmpo`: bounds of the *log*-ratio."""

    clip_low: float = 0.4
    clip_high: float = 0.4

    def __post_init__(self) -> None:
        check_clip("gmpo", self.clip_low, self.clip_high)


@dataclass(frozen=True)
class CorrectionSettings:
    """Which ratios ρ of its `level` ("token" or "sequence") the correction `name` takes as they are: [low, high]."""

    name: str
    low: float
    high: float
    level: str

    def __post_init__(self) -> None:
        levels = CORRECTIONS[self.name].levels
        if not 0.0 <= self.low <= self.high:
            raise ValueError(f"{self.name}: low is {self.low} and high is {self.high}, allowed is 0 ≤ low ≤ high.")
        if self.level not in levels:
            raise ValueError(f"{self.name}: level is {self.level!r}, allowed is {' or '.join(map(repr, levels))}.")


@dataclass(frozen=True)
class CorrectionDefaults:
    """What a correction has where nothing is given; the first of its levels."""

    low: float
    high: float
    levels: tuple[str, ...]


OBJECTIVES: Final[Mapping[str, type[Any]]] = {
    "espo": EspoSettings,
    "grpo": GrpoSettings,
    "dapo": DapoSettings,
    "gspo": GspoSettings,
    "cispo": CispoSettings,
    "gmpo": GmpoSettings,
}
_BOTH: Final = ("token", "sequence")
CORRECTIONS: Final[Mapping[str, CorrectionDefaults]] = {
    "tis": CorrectionDefaults(0.0, 2.0, _BOTH),
    "mis": CorrectionDefaults(0.5, 2.0, _BOTH),
    "icepop": CorrectionDefaults(0.5, 5.0, _BOTH),
    "geo": CorrectionDefaults(0.9, 1.1, ("sequence",)),
}


def check_clip(objective: str, clip_low: float, clip_high: float) -> None:
    """ValueError unless both are 0 or more; a `clip_low` of 1 or more and an infinite `clip_high` bound nothing."""
    for name, value in (("clip_low", clip_low), ("clip_high", clip_high)):
        if not value >= 0.0:
            raise ValueError(f"{objective}: {name} is {value}, allowed is 0 or more.")


def check_objective(name: str, given: Mapping[str, Any]) -> None:
    """ValueError: `learner.objective_settings` of the objective `name` hold what it does not know or cannot take."""
    _check_types(f"objective {name!r}", "objective_settings", _types(OBJECTIVES[name]), given)
    try:
        OBJECTIVES[name](**given)
    except ValueError as error:
        raise ValueError(f"learner objective_settings: {str(error).rstrip('.')}") from None


def check_correction(name: str, given: Mapping[str, Any]) -> None:
    """ValueError: the same of `learner.correction_settings`; `name` is one of `CORRECTIONS`."""
    types = {setting: kind for setting, kind in _types(CorrectionSettings).items() if setting != "name"}
    _check_types(f"correction {name!r}", "correction_settings", types, given)
    try:
        CorrectionSettings(**completed_correction(name, given))
    except ValueError as error:
        raise ValueError(f"learner correction_settings: {str(error).rstrip('.')}") from None


def completed_correction(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """All fields of `CorrectionSettings`."""
    defaults = CORRECTIONS[name]
    return {"name": name, "low": defaults.low, "high": defaults.high, "level": defaults.levels[0], **given}


_WORDS: Final[Mapping[Any, str]] = {
    float: "a number",
    float | None: "a number",
    int | None: "an integer",
    str: "a string",
    Sequence[float] | None: "a list of numbers",
}


def _types(kind: type[Any]) -> dict[str, Any]:
    return get_type_hints(kind)


def _check_types(owner: str, key: str, types: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    for setting, value in given.items():
        if setting not in types:
            raise ValueError(f"learner {key} holds {setting!r}; {owner} allows {', '.join(types)}")
        try:
            msgspec.convert(value, types[setting])
        except msgspec.ValidationError:
            words = _WORDS.get(types[setting]) or " or ".join(map(repr, get_args(types[setting])))
            raise ValueError(f"learner {key}.{setting} is {value!r}; allowed: {words}") from None
