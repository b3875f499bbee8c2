"""Which prompt comes next. One policy now, behind the protocol that a learning one will fill."""

import random
from collections.abc import Sequence
from typing import Protocol

from schemas.events import GroupDropped, GroupReady


class Curriculum(Protocol):
    """Chooses training prompts. Rebuilt at start from the requests and outcomes on the log, in any order."""

    def visited(self, prompt_id: str, visit: int) -> None:
        """A request on the log: this visit is taken. Prompts that are no longer in the source are ignored."""

    def outcome(self, event: GroupReady | GroupDropped) -> None:
        """How a group went."""

    def refused(self, prompt_id: str) -> None:
        """No producer can take this prompt: do not choose it again."""

    def allowed(self, prompt_id: str) -> None:
        """Its refusal was lifted: choose it as any other."""

    def choose(self, count: int, samples: int) -> list[tuple[str, int, int]]:
        """Take the next `count` visits, as (prompt id, visit, samples); fewer only where no prompt is left."""


class UniformCurriculum:
    """Every prompt once an epoch, each epoch in its own order, which seed and epoch alone decide.

    Prompts that have fewer visits than the epoch in progress implies (their requests outlived their retention, or the
    prompt is new in the source) join that epoch: visits never fall back to numbers that were used.
    """

    def __init__(self, prompt_ids: Sequence[str], seed: int) -> None:
        self._ids = list(prompt_ids)
        self._seed = seed
        self._visits = dict.fromkeys(self._ids, 0)
        self._refused: set[str] = set()
        self._rest: list[str] = []
        self._epoch = -1

    def visited(self, prompt_id: str, visit: int) -> None:
        """See Curriculum."""
        if visit >= self._visits.get(prompt_id, visit + 1):
            self._visits[prompt_id] = visit + 1
            self._epoch = -1

    def outcome(self, event: GroupReady | GroupDropped) -> None:
        """A uniform order learns nothing from outcomes."""

    def refused(self, prompt_id: str) -> None:
        """See Curriculum."""
        if prompt_id in self._visits:
            self._refused.add(prompt_id)

    def allowed(self, prompt_id: str) -> None:
        """See Curriculum."""
        self._refused.discard(prompt_id)
        self._epoch = -1

    def choose(self, count: int, samples: int) -> list[tuple[str, int, int]]:
        """See Curriculum."""
        chosen: list[tuple[str, int, int]] = []
        while len(chosen) < count and len(self._refused) < len(self._ids):
            if self._epoch < 0:
                self._resume()
            elif not self._rest:
                self._begin(self._epoch + 1)
            while self._rest and len(chosen) < count:
                prompt_id = self._rest.pop()
                if prompt_id not in self._refused:
                    self._visits[prompt_id] = self._epoch + 1
                    chosen.append((prompt_id, self._epoch, samples))
        return chosen

    def _resume(self) -> None:
        # Epoch e is only begun when all of e - 1 was requested, so the highest visit on the log tells the epoch.
        self._begin(max(0, max(self._visits.values(), default=0) - 1))

    def _begin(self, epoch: int) -> None:
        order = sorted(self._ids)
        random.Random(f"{self._seed}/{epoch}").shuffle(order)
        self._epoch = epoch
        self._rest = [prompt_id for prompt_id in reversed(order) if self._visits[prompt_id] <= epoch]
