"""Which checkpoints are kept: the newest ones, to go on from, and now and then one for good, to go back to."""

from collections.abc import Sequence, Set
from dataclasses import dataclass


@dataclass(frozen=True)
class Retention:
    """Keep the newest `last` checkpoints, and of the others those whose step `every` divides; 0: none of them."""

    last: int = 2
    every: int = 0

    def dropped(self, steps: Sequence[int], damaged: Set[int] = frozenset()) -> list[int]:
        """Which of the checkpoints at `steps` are to be deleted, oldest first.

        Those known to be `damaged` take no whole one's place. They stay to be looked at until training is past them.
        """
        whole = sorted(set(steps) - damaged)
        older = [step for step in whole[: -self.last] if not (self.every and step % self.every == 0)]
        passed = [step for step in set(steps) & damaged if whole and step < whole[-1]]
        return sorted(older + passed)
