"""Before each batch the ranks exchange what they are about to do, so that none enters a collective alone."""

from collections.abc import Sequence

import msgspec

from learner.errors import LearnerError
from schemas import Rejected


class Intent(msgspec.Struct, frozen=True):
    """What one rank is about to do: train on batch number `batch` without its `rejected` sequences, or stop (None)."""

    batch: int | None
    rejected: tuple[Rejected, ...] = ()

    def encode(self) -> bytes:
        """As JSON, for the exchange with the other ranks."""
        return msgspec.json.encode(self)


def merge_intents(encoded: Sequence[bytes]) -> tuple[Rejected, ...] | None:
    """The sequences that all ranks together reject from the batch, given every rank's encoded intent in rank order.

    None: at least one rank stops, so all do. LearnerError: the ranks are about to train on different batches.
    """
    intents = [msgspec.json.decode(part, type=Intent) for part in encoded]
    numbers = {intent.batch for intent in intents}
    if None in numbers:
        return None
    if len(numbers) > 1:
        raise LearnerError(f"ranks are about to train on different batches: {sorted(map(str, numbers))}")
    return tuple(rejected for intent in intents for rejected in intent.rejected)
