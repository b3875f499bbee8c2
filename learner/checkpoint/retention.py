"""Which checkpoints are kept: the newest, to resume from, and periodic ones for good, to return to."""

from collections.abc import Sequence, Set
from dataclasses import dataclass


@dataclass(frozen=True)
class Retention:
    """Keep the newest `last` checkpoints, and older ones whose step is a multiple of `every` (0: none)."""

    last: int = 2
    every: int = 0

    def dropped(self, steps: Sequence[int], damaged: Set[int] = frozenset()) -> list[int]:
        """The steps among `steps` whose checkpoints are to be deleted, in ascending order.

        Checkpoints known to be `damaged` do not count as kept. They stay until a newer intact one exists.
        """
        intact = sorted(set(steps) - damaged)
        older = [step for step in intact[: -self.last] if not (self.every and step % self.every == 0)]
        passed = [step for step in set(steps) & damaged if intact and step < intact[-1]]
        return sorted(older + passed)
