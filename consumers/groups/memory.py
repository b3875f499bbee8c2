"""What the aggregator remembers of rollouts that have a disposition, and which groups it may have forgotten.

Memory is bounded, by time and by number, and a forgotten group must never be opened again. So the memory knows its
edge: whatever it forgot was requested at or before `edge_s`. A group that is neither open nor remembered and was
requested no later than the edge is never opened, whatever became of it. No clock decides that, only the request's own
time, which all scores of a group share.
"""

import math
import struct
from typing import Final

from schemas import Ref

SKEW_S: Final = 60.0
"""A dispatcher's clock may be ahead of an aggregator's by this much: a group is not closed before it was requested."""

_Head: Final = struct.Struct("<dd?")
_Pair: Final = struct.Struct("<qq")


class Memory:
    """Ended rollouts by group, each group for `remember_s` after the last of them ended, `most` groups at a time.

    `known_since_s`: groups that were closed before are unknown to it (the horizon of the tail that a restart reads).
    About 270 bytes a group of 8 rollouts (`tests/consumers/groups/test_memory.py` measures it), so one packed string
    each and not Python objects. `remember` and `ended` are O(members of the group); `forget` is O(groups it drops).
    """

    def __init__(self, remember_s: float, most: int, known_since_s: float = -math.inf) -> None:
        self._remember_s = remember_s
        self._most = most
        self._groups: dict[str, bytes] = {}
        self._edge_s = known_since_s

    def __len__(self) -> int:
        return len(self._groups)

    @property
    def edge_s(self) -> float:
        """No group that was forgotten was requested later than this, unix seconds."""
        return self._edge_s

    def remember(
        self, group_id: str, rollouts: tuple[Ref, ...], at_s: float, *, closed: bool, requested_s: float
    ) -> None:
        """`rollouts` of the group, requested at `requested_s`, ended at `at_s`; `closed` if the group itself did."""
        # Taken out and put back, so that the dictionary stays ordered by the time of forgetting.
        known = self._groups.pop(group_id, b"")
        if known:
            _, before_s, closed_before = _Head.unpack_from(known)
            requested_s, closed = max(requested_s, before_s), closed or closed_before
        head = _Head.pack(at_s + self._remember_s, requested_s, closed)
        pairs = [_Pair.pack(rollout.partition, rollout.offset) for rollout in rollouts]
        self._groups[group_id] = b"".join((head, known[_Head.size :], *pairs))
        if len(self._groups) > self._most:
            self._forget(next(iter(self._groups)))

    def ended(self, group_id: str, rollout: Ref) -> bool:
        """Whether this rollout record has its disposition already."""
        group = self._groups.get(group_id)
        pair = (rollout.partition, rollout.offset)
        return group is not None and any(pair == known for known in _Pair.iter_unpack(group[_Head.size :]))

    def rollouts(self, group_id: str) -> set[Ref]:
        """The rollouts of the group that are remembered to have a disposition."""
        known = self._groups.get(group_id, b"")[_Head.size :]
        return {Ref("rollouts", partition, offset) for partition, offset in _Pair.iter_unpack(known)}

    def closed(self, group_id: str) -> bool:
        """Whether the group was closed."""
        group = self._groups.get(group_id)
        return group is not None and bool(_Head.unpack_from(group)[2])

    def heard(self, group_id: str) -> bool:
        """Whether any rollout of the group is remembered."""
        return len(self._groups.get(group_id, b"")) > _Head.size

    def forget(self, now_s: float) -> None:
        """Drop the groups that need not be remembered any longer."""
        while self._groups:
            group_id, group = next(iter(self._groups.items()))
            if _Head.unpack_from(group)[0] > now_s:
                return
            self._forget(group_id)

    def _forget(self, group_id: str) -> None:
        until_s, requested_s, _ = _Head.unpack_from(self._groups.pop(group_id))
        # Of a group that is still open, too: where a broker loses commits, recorded duplicates are read again.
        # A time in a damaged record must not move the edge into the future.
        self._edge_s = max(self._edge_s, min(requested_s, until_s - self._remember_s + SKEW_S))
