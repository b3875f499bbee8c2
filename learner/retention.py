"""Which checkpoints are kept: the newest ones, to go on from, and now and then one for good, to go back to."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Retention:
    """Keep the newest `last` checkpoints, and of the others those whose step `every` divides; 0: none of them."""

    last: int = 2
    every: int = 0

    def dropped(self, steps: Sequence[int]) -> list[int]:
        """Which of the checkpoints at `steps` are to be deleted, oldest first."""
        older = sorted(steps)[: -self.last]
        return [step for step in older if not (self.every and step % self.every == 0)]
