"""What the aggregator remembers of rollouts that ended: enough to tell a repeated score from a straggler."""

from array import array
from dataclasses import dataclass, field

from schemas import Ref


@dataclass
class _Ended:
    until_s: float
    closed: bool = False
    # Pairs of partition and offset: a tuple of Python objects would take ten times the memory for an hour of groups.
    refs: "array[int]" = field(default_factory=lambda: array("q"))

    def holds(self, rollout: Ref) -> bool:
        return any(
            self.refs[at] == rollout.partition and self.refs[at + 1] == rollout.offset
            for at in range(0, len(self.refs), 2)
        )


class Memory:
    """Ended rollouts by group, each group for `remember_s` after the last of them ended.

    `remember` and `ended` are O(members of the group); `forget` is O(groups whose time has come).
    """

    def __init__(self, remember_s: float) -> None:
        self._remember_s = remember_s
        self._groups: dict[str, _Ended] = {}

    def __len__(self) -> int:
        return len(self._groups)

    def remember(self, group_id: str, rollouts: tuple[Ref, ...], at_s: float, *, closed: bool) -> None:
        """`rollouts` of the group ended at `at_s`; `closed` if the group itself did."""
        # Taken out and put back, so that the dictionary stays ordered by the time of forgetting.
        group = self._groups.pop(group_id, None) or _Ended(at_s)
        group.until_s = at_s + self._remember_s
        group.closed = group.closed or closed
        for rollout in rollouts:
            group.refs.extend((rollout.partition, rollout.offset))
        self._groups[group_id] = group

    def ended(self, group_id: str, rollout: Ref) -> bool:
        """Whether this rollout record has its disposition already."""
        group = self._groups.get(group_id)
        return group is not None and group.holds(rollout)

    def closed(self, group_id: str) -> bool:
        """Whether the group was closed."""
        group = self._groups.get(group_id)
        return group is not None and group.closed

    def forget(self, now_s: float) -> None:
        """Drop the groups whose time has come."""
        while self._groups:
            group_id, group = next(iter(self._groups.items()))
            if group.until_s > now_s:
                return
            del self._groups[group_id]
