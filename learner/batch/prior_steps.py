"""What the log says of the steps after the checkpoint: an earlier life did them, and this one does them again."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec
import numpy as np

from schemas import Event, StepCompleted, WeightsPublished
from streams.log.clients import Log
from streams.log.tail import Tail, read_tail

_STEPS_TAIL: Final = 20_000
"""Steps that are read whatever stands there: one was rolled back by hand, or told again, for longer than the
checkpoints say. Their reading takes a second or two, and only what was rejected is kept."""

_WEIGHTS_TAIL: Final = 1000


class PriorSteps(msgspec.Struct, frozen=True):
    """`published`: the newest weights on the log, 0 where there are none. `rejected`: by rollout id, why a rollout of a
    batch from `next_batch` on was not trained on. What could not be read then is not trained on now either, though it
    can be read by now: the step's weights are on the log already, and must come out the same. `canary`: token ids of
    the set that producers are compared on, none where none was published.
    """

    published: int = 0
    rejected: Mapping[str, str] = msgspec.field(default_factory=dict)
    canary: tuple[tuple[int, ...], ...] = ()

    def canary_ids(self) -> np.ndarray[Any, np.dtype[np.uint32]] | None:
        """The set as u4 `[sequences, tokens]`."""
        return np.array(self.canary, np.uint32) if self.canary else None

    def encode(self) -> bytes:
        """For the other ranks."""
        return msgspec.json.encode(self)


def decode_prior_steps(data: bytes) -> PriorSteps:
    """What `PriorSteps.encode` said."""
    return msgspec.json.decode(data, type=PriorSteps)


async def read_prior_steps(log: Log, next_batch: int, unsaved: int) -> PriorSteps:
    """Read `steps` and `weights` back from their ends, as far as is needed, whatever others wrote there. StreamsError.

    `unsaved`: how many steps an earlier life can have done beyond the checkpoint at which a later one began. Lives
    tell their steps in order, so nothing from `next_batch` on stands before a step that is further than that below.
    """

    def is_before(event: Event) -> bool:
        return isinstance(event, StepCompleted) and event.batch < next_batch - unsaved

    def has_rejected(event: Event) -> bool:
        return isinstance(event, StepCompleted) and event.batch >= next_batch and bool(event.rejected)

    rejected: dict[str, str] = {}
    steps = Tail("steps", tail=_STEPS_TAIL, holding=is_before)
    for event, _ in await read_tail(log, steps, None, 0.0, has_rejected):
        if isinstance(event, StepCompleted):
            rejected.update((each.rollout_id, each.reason) for each in event.rejected)
    published = 0
    canary: tuple[tuple[int, ...], ...] = ()
    weights = Tail("weights", tail=_WEIGHTS_TAIL, holding=lambda event: isinstance(event, WeightsPublished))
    for event, _ in await read_tail(log, weights, None, 0.0):
        if isinstance(event, WeightsPublished):
            published = max(published, event.version)
            if event.canary is not None:
                canary = tuple(map(tuple, event.canary.token_ids.numpy().tolist()))
    return PriorSteps(published, rejected, canary)
