"""What the log holds of steps after the checkpoint: an earlier process did them, and this one does them again."""

from collections.abc import Mapping
from typing import Final

import msgspec

from schemas import Canary, Event, StepCompleted, WeightsPublished
from streams.log.clients import Log
from streams.log.tail import Tail, read_tail

_STEPS_TAIL: Final = 20_000
"""Steps that are read in any case: a run may have been rolled back by hand, or have re-published more steps than the
checkpoints account for. Reading them takes a second or two, and only rejections are kept."""

_WEIGHTS_TAIL: Final = 1000


class PriorSteps(msgspec.Struct, frozen=True):
    """What an earlier process did after the checkpoint.

    Attributes:
        published: the newest weights version on the log, 0 where there is none.
        rejected: by rollout id, why a rollout of a batch from `next_batch` on was not trained on. It is not trained on
            now either, even if it can be read by now: the step's weights are on the log and must come out the same.
        canary: the canary that was published last, whose set is scored again; None where none was.
    """

    published: int = 0
    rejected: Mapping[str, str] = msgspec.field(default_factory=dict)
    canary: Canary | None = None

    def encode(self) -> bytes:
        """As MessagePack, for the exchange with the other ranks."""
        return msgspec.msgpack.encode(self)


def decode_prior_steps(data: bytes) -> PriorSteps:
    """The inverse of `PriorSteps.encode`."""
    return msgspec.msgpack.decode(data, type=PriorSteps)


async def read_prior_steps(log: Log, next_batch: int, unsaved: int) -> PriorSteps:
    """Read `steps` and `weights` backwards from their ends, as far as needed, past any other records. StreamsError.

    `unsaved`: how many steps an earlier process can have done beyond the checkpoint that a later one resumed from. Each
    process reports its steps in order, so no step from `next_batch` on precedes one more than `unsaved` below it.
    """

    def is_before(event: Event) -> bool:
        return isinstance(event, StepCompleted) and event.batch < next_batch - unsaved

    def has_rejected(event: Event) -> bool:
        return isinstance(event, StepCompleted) and event.batch >= next_batch and bool(event.rejected)

    rejected: dict[str, str] = {}
    steps = Tail("steps", newest=_STEPS_TAIL, holding=is_before)
    for event, _ in await read_tail(log, steps, None, 0.0, has_rejected):
        if isinstance(event, StepCompleted):
            rejected.update((each.rollout_id, each.reason) for each in event.rejected)
    published = 0
    canary: Canary | None = None
    weights = Tail("weights", newest=_WEIGHTS_TAIL, holding=lambda event: isinstance(event, WeightsPublished))
    for event, _ in await read_tail(log, weights, None, 0.0):
        if isinstance(event, WeightsPublished):
            published = max(published, event.version)
            if event.canary is not None:
                canary = event.canary
    return PriorSteps(published, rejected, canary)
