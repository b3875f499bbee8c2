"""Rollouts that are excused: they wait for a score or group that a stage could not process, by its dead letter."""

from collections import defaultdict
from collections.abc import Callable
from typing import Final

from schemas import DeadLetter, DeadLetterPurged, DeadLetterReplayed, Ref
from schemas.services import SERVICES, readers

ROLLOUT_TOPICS: Final = ("rollouts", "scores", "groups")
"""The topics that a rollout passes until it is planned into a batch."""

STAGES: Final = {
    name: service.input for name, service in SERVICES.items() if service.commits and service.input in ROLLOUT_TOPICS
}
"""Service → its input, of the services that work on these topics."""

_READERS: Final = {topic: readers(topic)[0] for topic in ROLLOUT_TOPICS if topic != "rollouts"}
"""Topic → the service that finishes its records. `rollouts` is missing: the dead letter of a rollout disposes of it."""


class DeadEnds:
    """Collects dead letters in any order; once all are known, `judge` says which rollouts they account for. Pure.

    A record that decodes names the rollouts that it was about, and excuses no others. Of one that does not decode only
    the key is known, which is its group. A replayed record excuses nothing once its stage has finished it: by then its
    rollouts have a disposition or a second dead letter.
    """

    def __init__(self) -> None:
        self._keys: dict[Ref, bytes] = {}
        self._rollouts: dict[Ref, list[Ref]] = {}
        self._replayed: dict[Ref, Ref] = {}

    def add(self, dead: DeadLetter | DeadLetterReplayed | DeadLetterPurged, rollouts: list[Ref]) -> None:
        """Add a dead letter, or what was done with it, and the rollouts that it disposes of."""
        if dead.source.topic not in _READERS:
            return
        if not isinstance(dead, DeadLetter) and dead.replayed is not None:
            self._replayed[dead.source] = dead.replayed
        elif rollouts:
            self._rollouts[dead.source] = rollouts
        elif not isinstance(dead, DeadLetterReplayed) and dead.key is not None:
            self._keys[dead.source] = dead.key

    def judge(self, finished: Callable[[str, Ref], bool] | None) -> "StandingEnds":
        """What still excuses; `finished(stage, ref)` tells whether a stage has committed a record (None: not known)."""

        def stands(source: Ref) -> bool:
            back = self._replayed.get(source)
            return back is None or finished is None or not finished(_READERS[source.topic], back)

        standing: defaultdict[Ref, bool] = defaultdict(bool)
        for source, rollouts in self._rollouts.items():
            for rollout in rollouts:
                standing[rollout] |= stands(source)
        return StandingEnds({key for source, key in self._keys.items() if stands(source)}, dict(standing))


class StandingEnds:
    """Which rollouts are excused by dead letters that still stand."""

    def __init__(self, groups: set[bytes], rollouts: dict[Ref, bool]) -> None:
        self._groups = groups
        self._rollouts = rollouts

    def excuses(self, name: bytes) -> bool:
        """Whether a record of this rollout id's group does not decode, which may be the one that it waits for."""
        return name.rpartition(b".")[0] in self._groups

    def is_over(self, rollout: Ref) -> bool:
        """Whether all its refused records were replayed and finished: its dead letters dispose of it no more."""
        return not self._rollouts.get(rollout, True)
