"""Settings of the reward consumers."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from schemas.verifiers import VERIFIERS


class LengthPenalty(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The overlong penalty of DAPO (arXiv 2503.14476, equation 13): 0 for short responses, −1 at `max_tokens`."""

    weight: Annotated[
        float, Meta(ge=0, description="how much the penalty counts in the reward; 0: it is not computed")
    ] = 0.0
    share: Annotated[
        float, Meta(gt=0, le=1, description="share of max_tokens at the end over which the penalty grows to −1")
    ] = 0.25


class RepetitionPenalty(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Minus the share of a response's n-grams that occurred in it before."""

    weight: Annotated[
        float, Meta(ge=0, description="how much the penalty counts in the reward; 0: it is not computed")
    ] = 0.0
    ngram_tokens: Annotated[int, Meta(ge=1, description="tokens of one n-gram")] = 8


class RewardSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How rollouts are scored."""

    model: Annotated[str, Meta(min_length=1, description="directory with the model's tokenizer.json")]
    max_in_flight: Annotated[int, Meta(ge=1, description="rollouts scored at once")] = 64
    timeout_s: Annotated[float, Meta(gt=0, description="seconds a verifier may take for one rollout")] = 5.0
    pool_size: Annotated[
        int, Meta(ge=1, description="processes of the pool that runs the verifiers which need much processor time")
    ] = 2
    prewarm: Annotated[
        tuple[str, ...], Meta(description="verifiers whose processes are started with the service, not when first used")
    ] = ()
    truncated: Annotated[
        Literal["wrong", "verify"],
        Meta(description="a response cut off at max_tokens: wrong whatever it says, or judged like any other"),
    ] = "wrong"
    special_tokens: Annotated[
        Literal["strip", "keep"],
        Meta(description="whether verifiers see special tokens as text, such as <think> where it is one"),
    ] = "strip"
    length: LengthPenalty = LengthPenalty()
    repetition: RepetitionPenalty = RepetitionPenalty()

    def __post_init__(self) -> None:
        for name in self.prewarm:
            if name not in VERIFIERS:
                raise ValueError(f"prewarm {name!r} is not one of {', '.join(VERIFIERS)}")
