"""Batches that were planned and steps that were trained."""

from schemas.events.base import EventBase
from schemas.parts import Count, Finite, PlannedSequence, Ref, Rejected, Time


class BatchPlanned(EventBase, frozen=True, kw_only=True):
    """Batch number `batch` (from 0), by reference.

    `ranks[r][m]` are the indices into `sequences` of micro-batch m of rank r. `loads` is each rank's cost Σ a·n + b·n²;
    `fill` the share of the token budget used; `imbalance` max load / mean load.
    """

    batch: Count
    groups: tuple[str, ...]
    sequences: tuple[PlannedSequence, ...]
    ranks: tuple[tuple[tuple[Count, ...], ...], ...]
    token_budget: Count
    time_s: Time
    loads: tuple[Finite, ...] = ()
    fill: Finite = 0.0
    imbalance: Finite = 1.0
    staleness_max: int = 0
    staleness_mean: Finite = 0.0
    waited_s: Finite = 0.0

    def __post_init__(self) -> None:
        indices = sorted(index for rank in self.ranks for micro_batch in rank for index in micro_batch)
        if indices != list(range(len(self.sequences))):
            raise ValueError(f"batch {self.batch} does not place each of its {len(self.sequences)} sequences once")


class StepCompleted(EventBase, frozen=True, kw_only=True):
    """The learner trained on batch `batch` and holds weights `version` (the number of steps done) now.

    A later record for the same step is a replay after a crash and says the same; readers keep the first.

    `trained_digest` is of what entered the step (`schemas.digests.step_digest`), `config_digest` of the settings that
    it was done with (`deploy.config.digest`); None in records of earlier versions. `tokens` are those that were trained
    on, of `sequences` responses: what a response was given by tools or its environment is not among them.
    """

    step: Count
    batch: Count
    batch_ref: Ref
    version: Count
    metrics: dict[str, float]
    time_s: Time
    tokens: Count = 0
    sequences: Count = 0
    rejected: tuple[Rejected, ...] = ()
    wall_s: Finite = 0.0
    waited_s: Finite = 0.0
    trained_digest: str | None = None
    config_digest: str | None = None
