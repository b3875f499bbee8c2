"""Which published weights to take next, without I/O."""

from schemas.events import WeightsPublished
from streams.record import Record


class Publications:
    """Publications from the version in use on. The newest wins; what lies between is skipped.

    The one in use is kept: an engine that is started again begins at version 0 and takes it once more. A version that
    is published twice (the learner went on from an older checkpoint) is the same weights: once in use it is not new.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[WeightsPublished, Record]] = {}

    def offer(self, event: WeightsPublished, record: Record) -> bool:
        """Note a publication; False for a delta, which cannot be taken without its base and every delta since."""
        if event.kind != "full":
            return False
        self._known[event.version] = (event, record)
        return True

    def newest(self, current: int) -> tuple[WeightsPublished, Record] | None:
        """The newest publication above `current`; forgets those below it."""
        self._known = {version: item for version, item in self._known.items() if version >= current}
        newest = max(self._known, default=current)
        return self._known[newest] if newest > current else None

    def give_up(self, version: int) -> None:
        """This publication cannot be used: the next older one that is still newer than what is in use comes next."""
        self._known.pop(version, None)
