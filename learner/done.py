"""What the log says of the steps after the checkpoint: an earlier life did them, and this one does them again."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec
import numpy as np

from schemas import StepCompleted, WeightsPublished
from streams.log import Log
from streams.recall import Recall, recalled

_TAIL: Final = 1000


class Done(msgspec.Struct, frozen=True):
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


def decode_done(data: bytes) -> Done:
    """What `Done.encode` said."""
    return msgspec.json.decode(data, type=Done)


async def read_done(log: Log, next_batch: int) -> Done:
    """Read the ends of `steps` and `weights`. StreamsError."""
    rejected: dict[str, str] = {}
    for event, _ in await recalled(log, Recall("steps", tail=_TAIL), None, 0.0):
        if isinstance(event, StepCompleted) and event.batch >= next_batch:
            rejected.update((each.rollout_id, each.reason) for each in event.rejected)
    published = 0
    canary: tuple[tuple[int, ...], ...] = ()
    for event, _ in await recalled(log, Recall("weights", tail=_TAIL), None, 0.0):
        if isinstance(event, WeightsPublished):
            published = max(published, event.version)
            if event.canary is not None:
                canary = tuple(map(tuple, event.canary.token_ids.numpy().tolist()))
    return Done(published, rejected, canary)
