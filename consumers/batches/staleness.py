"""Where staleness is enforced: groups that wait for a batch, oldest weights first, and those that waited too long.

Batch b trains weights b into b + 1, so a group's staleness in batch b is b − its oldest version: no clock, no race.
`producers.dispatcher.admission` asks for no more than can be used in time; what is too old all the same ends here.
"""

from dataclasses import dataclass

from schemas import GroupReady, Member
from streams.record import Record


@dataclass(frozen=True)
class WaitingGroup:
    """A group that waits for its batch; `members` are those to be trained on."""

    oldest_version: int
    arrival: int
    group: GroupReady
    members: tuple[Member, ...]
    record: Record


class WaitingGroups:
    """The groups that wait, in the order in which they are to be trained on. Pure."""

    def __init__(self, max_staleness: int) -> None:
        self._max_staleness = max_staleness
        self._groups: list[WaitingGroup] = []

    def __len__(self) -> int:
        return len(self._groups)

    def add(self, group: WaitingGroup) -> None:
        """A group that is ready."""
        self._groups.append(group)
        self._groups.sort(key=lambda waiting: (waiting.oldest_version, waiting.arrival))

    def take_stale(self, batch: int) -> list[WaitingGroup]:
        """The groups that are too old for batch number `batch`, and so for every later one: they wait no longer."""
        oldest_allowed = batch - self._max_staleness
        stale = [group for group in self._groups if group.oldest_version < oldest_allowed]
        self._groups = [group for group in self._groups if group.oldest_version >= oldest_allowed]
        return stale

    def take(self, count: int) -> list[WaitingGroup]:
        """The next `count` groups: oldest weights first, so that none goes stale while a fresher one is trained on."""
        taken, self._groups = self._groups[:count], self._groups[count:]
        return taken
