"""Which published weights to take next, without I/O."""

from schemas.events import WeightsPublished
from streams.record import Record


class Publications:
    """What was published since the newest anchor at or before the version in use. The newest version wins.

    The one in use is kept: an engine that is started again begins at version 0 and takes it once more. A version that
    is published twice (the learner resumed from an older checkpoint, or answers a refusal with an anchor) counts as the
    later record says; once in use it is not new.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[WeightsPublished, Record]] = {}
        self._given_up: set[int] = set()

    def offer(self, event: WeightsPublished, record: Record) -> None:
        """Note a publication."""
        self._known[event.version] = (event, record)
        self._given_up.discard(event.version)

    def newest(self, current: int) -> tuple[WeightsPublished, Record] | None:
        """The newest publication above `current` that was not given up; forgets what no chain can need any more."""
        anchors = [version for version, (event, _) in self._known.items() if event.kind == "full"]
        oldest = max((version for version in anchors if version <= current), default=-1)
        self._known = {version: item for version, item in self._known.items() if version >= oldest}
        above = [version for version in self._known if version > current and version not in self._given_up]
        return self._known[max(above)] if above else None

    def usable(self) -> dict[int, WeightsPublished]:
        """What a version may be made of: everything known that was not given up."""
        return {version: event for version, (event, _) in self._known.items() if version not in self._given_up}

    def give_up(self, version: int) -> None:
        """This publication cannot be used: the next older one that is still newer than what is in use comes next."""
        self._given_up.add(version)
