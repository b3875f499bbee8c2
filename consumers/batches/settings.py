"""Settings of the length-aware batcher."""

from typing import Annotated

import msgspec
from msgspec import Meta


class BatchSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a batch is made of and how far batches may be planned ahead of the learner."""

    groups_per_batch: Annotated[int, Meta(ge=1, description="groups of one batch")] = 16
    ranks: Annotated[int, Meta(ge=1, description="ranks of the learner, each gets as many micro-batches")] = 1
    token_budget: Annotated[
        int, Meta(ge=1, description="tokens of one micro-batch at most; a group with a longer sequence is dropped")
    ] = 16_384
    max_staleness: Annotated[
        int, Meta(ge=0, description="versions that a batch's rollouts may be behind the weights it trains")
    ] = 2
    lookahead: Annotated[int, Meta(ge=1, description="batches planned and not yet trained at most")] = 2
    max_batches: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="batches of the run; later groups stay in flight; null: no end"),
    ] = None
    model: Annotated[
        str | None, Meta(description="model directory whose config.json gives the cost; null: cost by tokens")
    ] = None
    cost: Annotated[
        tuple[float, float] | None,
        Meta(description="a and b of the cost a·n + b·n² of n tokens, instead of the model's"),
    ] = None

    def __post_init__(self) -> None:
        if self.cost is not None and not (min(self.cost) >= 0 and sum(self.cost) > 0):
            raise ValueError(f"cost {list(self.cost)} is not two numbers of at least 0, one of them above 0")
