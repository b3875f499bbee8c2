"""When the held-back prompts are measured, and which requests of a round are still to be written."""

from collections.abc import Sequence


class WeightVersions:
    """What is published and who holds it."""

    def __init__(self) -> None:
        self.published = 0
        self._applied: dict[str, int] = {}

    def publish(self, version: int) -> None:
        """`version` is on the `weights` topic."""
        self.published = max(self.published, version)

    def apply(self, producer_id: str, version: int) -> None:
        """What a producer reported last; after a restart it may be an older version than before."""
        self._applied[producer_id] = version

    def unapplied(self, steps: int) -> int:
        """Versions between `steps` and the newest one that any producer holds; 0 while no producer is known.

        The newest and not the oldest counts, so that one lost producer never holds back a run that has others.
        """
        return max(0, steps - max(self._applied.values(), default=steps))

    def behind(self, version: int) -> list[str]:
        """Producers that hold an older version than `version`."""
        return sorted(producer for producer, applied in self._applied.items() if applied < version)


class Evaluations:
    """Rounds over all held-back prompts, named by the step after which they were asked for.

    Round 0 comes before the first training prompt, then one every `every` steps (0: none), and a last one after
    `max_steps`. A round that was missed because no dispatcher ran is not made up for: its weights are gone. The round
    in progress is completed prompt by prompt, so that a crash in its middle repeats nothing.
    """

    def __init__(self, prompt_ids: Sequence[str], every: int, max_steps: int | None) -> None:
        self._ids = tuple(prompt_ids)
        self._every = every
        self._max_steps = max_steps
        self._round = -1
        self._requested: set[str] = set()
        self._visits = dict.fromkeys(self._ids, 0)

    def visited(self, prompt_id: str, visit: int) -> None:
        """A request of this prompt for whatever purpose: its visit number is used up."""
        if prompt_id in self._visits:
            self._visits[prompt_id] = max(self._visits[prompt_id], visit + 1)

    def requested(self, evaluation: int, prompt_id: str) -> None:
        """One request of a round, on the log or about to be."""
        if evaluation > self._round:
            self._round, self._requested = evaluation, set()
        if evaluation == self._round:
            self._requested.add(prompt_id)

    def final_due(self, steps: int) -> bool:
        """Whether only the last round remains to be asked for: it waits for the final weights to be everywhere."""
        last = self._max_steps
        return bool(self._ids) and last is not None and steps >= last and (self._round < last or self._partial())

    def due(self, steps: int, final_weights_applied: bool) -> tuple[int, list[tuple[str, int]]] | None:
        """The round to ask for now and its missing (prompt id, visit); None where there is none."""
        if not self._ids:
            return None
        last = self._max_steps
        if last is not None and steps >= last:
            evaluation = last if final_weights_applied else None
        elif self._every:
            evaluation = steps - steps % self._every
        else:
            evaluation = 0 if steps == 0 else None
        if evaluation is None or evaluation < self._round:
            return None
        missing = self._ids if evaluation > self._round else [i for i in self._ids if i not in self._requested]
        return (evaluation, [(i, self._visits[i]) for i in missing]) if missing else None

    def _partial(self) -> bool:
        return any(prompt_id not in self._requested for prompt_id in self._ids)
