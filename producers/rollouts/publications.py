"""Which published weights to take next, without I/O."""

from schemas.events import WeightsPublished
from streams.record import Record


class Publications:
    """Publications not taken yet. The newest wins; what lies between it and the version in use is skipped."""

    def __init__(self) -> None:
        self._pending: dict[int, tuple[WeightsPublished, Record]] = {}

    def offer(self, event: WeightsPublished, record: Record) -> bool:
        """Note a publication; False for a delta, which cannot be taken without its base and every delta since."""
        if event.kind != "full":
            return False
        self._pending[event.version] = (event, record)
        return True

    def newest(self, current: int) -> tuple[WeightsPublished, Record] | None:
        """The newest publication above `current`; forgets those that are not."""
        self._pending = {version: item for version, item in self._pending.items() if version > current}
        return self._pending[max(self._pending)] if self._pending else None

    def give_up(self, version: int) -> None:
        """This publication cannot be used: the next older one that is still newer than what is in use comes next."""
        self._pending.pop(version, None)
