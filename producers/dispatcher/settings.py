"""The dispatcher's section of the configuration."""

from typing import Annotated

import msgspec

from producers.dispatcher.sources import SourceSettings
from schemas.parts import Sampling

Meta = msgspec.Meta


class SamplingSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How tokens are drawn. The learner trains the policy at this temperature, and only over the whole vocabulary."""

    max_tokens: Annotated[int, Meta(ge=1, description="longest response, in tokens")] = 1024
    temperature: Annotated[float, Meta(ge=0, description="0 is greedy")] = 1.0
    top_p: Annotated[float, Meta(gt=0, le=1, description="nucleus; 1 is the whole vocabulary")] = 1.0
    top_k: Annotated[int, Meta(ge=0, description="most likely tokens; 0 is the whole vocabulary")] = 0

    def on_wire(self) -> Sampling:
        """As requests carry it."""
        return Sampling(max_tokens=self.max_tokens, temperature=self.temperature, top_p=self.top_p, top_k=self.top_k)


class DispatcherSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is asked for, how much of it at once, and when the held-back prompts are measured."""

    source: Annotated[SourceSettings, Meta(description="prompts to train on")]
    held_back: Annotated[SourceSettings | None, Meta(description="prompts to measure on; never trained on")] = None
    samples: Annotated[int, Meta(ge=1, description="rollouts of each training prompt and visit")] = 8
    sampling: SamplingSettings = SamplingSettings()
    groups_per_batch: Annotated[int, Meta(ge=1, description="groups of a batch, as the batcher has it")] = 16
    max_staleness: Annotated[int, Meta(ge=0, description="oldest trainable weights, in versions behind")] = 1
    group_timeout_s: Annotated[float, Meta(gt=0, description="deadline of a group, from its request")] = 600.0
    outcome_grace_s: Annotated[
        float, Meta(gt=0, description="a group without outcome this long after its deadline frees its slot")
    ] = 120.0
    evaluate_every: Annotated[int, Meta(ge=0, description="steps between held-back rounds; 0 for none between")] = 10
    evaluate_samples: Annotated[int, Meta(ge=0, description="rollouts of each held-back prompt; 0 for no rounds")] = 1
    final_evaluation_wait_s: Annotated[
        float, Meta(gt=0, description="longest wait for every producer to hold the final weights")
    ] = 300.0
    retention_h: Annotated[
        float, Meta(ge=0, description="hours that records stay on the log; their blobs go a day later; 0: never")
    ] = 0.0
    max_steps: Annotated[
        Annotated[int, Meta(ge=0)] | None, Meta(description="stop asking after this many steps; none for no end")
    ] = None

    @property
    def window_groups(self) -> int:
        """Training groups that may be outstanding: the batch in training and `max_staleness` batches ahead of it."""
        return (self.max_staleness + 1) * self.groups_per_batch

    def held_groups(self, unapplied: int) -> int:
        """The part of the window to leave empty while the newest `unapplied` versions are not generated with yet.

        With O groups outstanding after `steps` batches, the next one will be trained in batch steps + ⌊O / G⌋. It is
        generated with version steps - unapplied, so its staleness stays within the bound while
        O < G·(max_staleness + 1 - unapplied). One batch's worth is always allowed: a producer that applies nothing
        must not wedge the run.
        """
        return min(unapplied, self.max_staleness) * self.groups_per_batch
