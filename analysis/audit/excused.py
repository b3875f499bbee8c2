"""What dead letters of scores and groups excuse: a rollout that waits for what a stage could not read."""

from collections import defaultdict
from collections.abc import Callable
from typing import Final

from schemas import DeadLetter, Ref
from schemas.services import SERVICES, readers

ROLLOUT_TOPICS: Final = ("rollouts", "scores", "groups")
"""The way of a rollout until it is planned into a batch."""

STAGES: Final = {
    name: service.input for name, service in SERVICES.items() if service.commits and service.input in ROLLOUT_TOPICS
}
"""Service → its input, of those that work on what became of a rollout."""

_READERS: Final = {topic: readers(topic)[0] for topic in ROLLOUT_TOPICS if topic != "rollouts"}
"""Topic → the service that finishes its records; a rollout that cannot be read ends with its own dead letter."""


class DeadEnds:
    """Letters in, in any order; then, once all are known, whether one of them accounts for a rollout. Pure.

    A record that can be read says which rollouts it was about, and excuses no other. Of one that cannot, only the key
    is known, its group. What was put back excuses nothing any more once its stage has finished it: by then there is an
    end, or a second letter.
    """

    def __init__(self) -> None:
        self._keys: dict[Ref, bytes] = {}
        self._rollouts: dict[Ref, list[Ref]] = {}
        self._replayed: dict[Ref, Ref] = {}

    def add(self, letter: DeadLetter, rollouts: list[Ref]) -> None:
        """A letter, and the rollouts that it says end with it."""
        if letter.source.topic not in _READERS:
            return
        if letter.replayed is not None:
            self._replayed[letter.source] = letter.replayed
        elif rollouts:
            self._rollouts[letter.source] = rollouts
        elif letter.key is not None:
            self._keys[letter.source] = letter.key

    def judge(self, finished: Callable[[str, Ref], bool] | None) -> "StandingEnds":
        """What stands, where `finished(stage, ref)` says whether a stage has committed a record (None: not known)."""

        def stands(source: Ref) -> bool:
            back = self._replayed.get(source)
            return back is None or finished is None or not finished(_READERS[source.topic], back)

        told: defaultdict[Ref, bool] = defaultdict(bool)
        for source, rollouts in self._rollouts.items():
            for rollout in rollouts:
                told[rollout] |= stands(source)
        return StandingEnds({key for source, key in self._keys.items() if stands(source)}, dict(told))


class StandingEnds:
    """The answers."""

    def __init__(self, groups: set[bytes], rollouts: dict[Ref, bool]) -> None:
        self._groups = groups
        self._rollouts = rollouts

    def excuses(self, name: bytes) -> bool:
        """Whether a record of its group cannot be read, so that the rollout of this id may lack just that."""
        return name.rpartition(b".")[0] in self._groups

    def is_over(self, rollout: Ref) -> bool:
        """Whether all that was refused of it was put back and finished: its letters are its end no more."""
        return not self._rollouts.get(rollout, True)
