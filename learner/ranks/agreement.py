"""Before each batch the ranks say what they are about to do, so that none trains alone."""

from collections.abc import Sequence

import msgspec

from learner.errors import LearnerError
from schemas import Rejected


class Intent(msgspec.Struct, frozen=True):
    """What a rank is about to do: train on `batch` without what it `rejected`, or stop (None)."""

    batch: int | None
    rejected: tuple[Rejected, ...] = ()

    def encode(self) -> bytes:
        """For the other ranks."""
        return msgspec.json.encode(self)


def agreed(said: Sequence[bytes]) -> tuple[Rejected, ...] | None:
    """What all ranks together reject of the batch; None where one of them stops. LearnerError: they do not agree."""
    intents = [msgspec.json.decode(part, type=Intent) for part in said]
    numbers = {intent.batch for intent in intents}
    if None in numbers:
        return None
    if len(numbers) > 1:
        raise LearnerError(f"ranks are about to train on different batches: {sorted(map(str, numbers))}")
    return tuple(rejected for intent in intents for rejected in intent.rejected)
