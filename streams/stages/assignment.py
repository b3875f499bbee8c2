"""Which partitions of its input a replica has: fixed by its ordinal, or divided among the replicas that are there.

`FixedAssignments`: replica k of n has the partitions p with p % n == k, as long as it runs.

`Membership`: the replicas that are there form a consumer group and divide the partitions by the same rule, over their
sorted ordinals, so that one can be added or removed under load. Members are static, `<run>.<stage>.<ordinal>`: one
that is killed and started again with its ordinal gets its partitions back without a rebalance; one that does not come
back loses them after SESSION_S. Each one leaves explicitly when it ends. Commits carry the generation, so that an
earlier owner cannot commit over the present one.

            take()                      revoked                     take()
    ─────────┬────── heartbeats ──────────┬── settle, commit ────────┬──────
    join, sync: these partitions     a member came or left      other partitions

Everything happens in the caller's calls: no listener runs beside it, and a heartbeat's error is raised by the next
call.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata
from aiokafka.protocol.group import JoinGroupRequest, SyncGroupRequest

from streams.cancellation import spawn
from streams.errors import FencedError, StreamsError
from streams.log.clients import Log, within
from streams.stages.group_coordinator import (
    FENCED,
    MEMBER_ID_REQUIRED,
    OK,
    OUTDATED,
    REBALANCING,
    UNKNOWN_MEMBER,
    Coordinator,
    name_of,
)
from streams.stages.group_protocol import Heartbeat, LeaveGroup

SESSION_S: Final = 10.0
"""How long a member may miss its heartbeats before the others get its partitions; brokers allow 6 s and more."""

_REBALANCE_S: Final = 5.0
_HEARTBEAT_S: Final = 0.3
_RETRY_S: Final = 0.05
_LEAVE_S: Final = 5.0
_NO_GENERATION: Final = -1

_ASSIGNOR: Final = "eachprompt-by-ordinal"
"""The one assignor: members that know only others cannot join the group."""


@dataclass(frozen=True)
class Assignment:
    """The partitions that are the replica's until `revoked`.

    `continued`: no other replica can have had any of them since the previous assignment, so what is known of the
    progress of those that were in that one too still holds.
    """

    partitions: frozenset[int]
    continued: bool


class Assignments(Protocol):
    """A replica's assignments, one after another, and where it commits."""

    revoked: asyncio.Event
    """Set when the assignment ends: finish what can be finished quickly, commit, and `take` the next one."""

    async def take(self) -> Assignment:
        """The assignment from now on. StreamsError, DeadlineError, FencedError."""

    async def commit(self, offsets: Mapping[int, tuple[int, str]]) -> bool:
        """Commit `(offset, metadata)` by partition. False: nothing is committed, since the assignment has ended."""


class FixedAssignments:
    """The same partitions always, by ordinal and number of replicas. Use as an async context."""

    def __init__(self, log: Log, group: str, topic: str, ordinal: int, replicas: int) -> None:
        self.revoked = asyncio.Event()
        self._topic = log.full(topic)
        self._partitions = frozenset(log.owned(topic, ordinal, replicas))
        self._coordinator = Coordinator(log, group)

    async def __aenter__(self) -> "FixedAssignments":
        await self._coordinator.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._coordinator.__aexit__(*exc)

    async def take(self) -> Assignment:
        """The same partitions, always."""
        return Assignment(self._partitions, continued=True)

    async def commit(self, offsets: Mapping[int, tuple[int, str]]) -> bool:
        """Commit. StreamsError: the stage's consumer group has members."""
        code = await self._coordinator.commit(self._topic, offsets)
        if code != OK:
            raise StreamsError(
                f"offsets of {self._coordinator.group} cannot be committed: {name_of(code)}; "
                "its consumer group has members, which divide the partitions among themselves"
            )
        return True


class Membership:
    """A static member of the stage's consumer group. Use as an async context; it leaves the group at the end."""

    def __init__(self, log: Log, group: str, topic: str, ordinal: int) -> None:
        self.revoked = asyncio.Event()
        self._log = log
        self._topic = topic
        self._coordinator = Coordinator(log, group)
        self._instance = f"{group}.{ordinal}"
        self._member = ""
        self._generation = _NO_GENERATION
        self._partitions: frozenset[int] = frozenset()
        self._joining = False
        self._known = False
        self._beating: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Membership":
        await self._coordinator.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        try:
            self._stop_beating()
            await self._leave()
        finally:
            await self._coordinator.__aexit__(*exc)

    async def take(self) -> Assignment:
        """Join the group again and wait for the other members, each of which has `_REBALANCE_S` to do so."""
        self._raise_beating_error()
        self._stop_beating()
        self.revoked.clear()
        before = (self._member, self._generation)
        seconds = self._log.settings.call_timeout_s + SESSION_S
        self._joining = self._known = True
        try:
            generation, partitions = await within(seconds, f"to join {self._coordinator.group}", self._join())
        finally:
            self._joining = False
        # In a generation that was missed there may have been another owner, even where the partitions are the same.
        continued = before[0] == self._member and 0 <= before[1] <= generation <= before[1] + 1
        self._generation, self._partitions = generation, partitions
        self._beating = spawn(self._beat(), f"heartbeats of {self._instance}")
        self._beating.add_done_callback(self._on_beating_end)
        return Assignment(partitions, continued)

    async def commit(self, offsets: Mapping[int, tuple[int, str]]) -> bool:
        """Commit those of `offsets` whose partitions are in this assignment, with its generation."""
        self._raise_beating_error()
        own = {p: state for p, state in offsets.items() if p in self._partitions}
        if self._joining or not own:
            return not own
        generation, member = self._generation, self._member
        code = await self._coordinator.commit(self._log.full(self._topic), own, generation, member, self._instance)
        if code == FENCED:
            raise self._fenced()
        if code != OK and generation == self._generation and not self._joining:
            self.revoked.set()
        return code == OK

    async def _join(self) -> tuple[int, frozenset[int]]:
        """The generation and the partitions that this member has in it."""
        coordinator, topic = self._coordinator, self._log.full(self._topic)
        metadata = ConsumerProtocolMemberMetadata(0, [topic], b"").encode()
        while True:
            request = JoinGroupRequest(
                coordinator.group,
                int(SESSION_S * 1000),
                int(_REBALANCE_S * 1000),
                self._member,
                self._instance,
                "consumer",
                [(_ASSIGNOR, metadata)],
            )
            answer, code = await coordinator.ask(f"to join {coordinator.group}", request, held=True)
            if code == OK:
                self._member = answer.member_id
                dealt = self._deal(answer.members) if answer.leader_id == answer.member_id else []
                sync = SyncGroupRequest(coordinator.group, answer.generation_id, self._member, self._instance, dealt)
                synced, code = await coordinator.ask(f"for its partitions of {coordinator.group}", sync, held=True)
                if code == OK:
                    return answer.generation_id, _partitions_in(synced.member_assignment)
            elif code == MEMBER_ID_REQUIRED:
                self._member = answer.member_id
                continue
            if code == FENCED:
                raise self._fenced()
            if code not in OUTDATED:
                raise StreamsError(f"{coordinator.group} does not take {self._instance}: {name_of(code)}")
            if code == UNKNOWN_MEMBER:
                self._member = ""
            await asyncio.sleep(_RETRY_S)

    def _deal(self, members: Sequence[tuple[str, str | None, bytes]]) -> list[tuple[str, bytes]]:
        topic = self._log.full(self._topic)
        ordinals = {member: _ordinal(instance) for member, instance, _ in members}
        return [
            (member, ConsumerProtocolMemberAssignment(0, [(topic, partitions)] if partitions else [], b"").encode())
            for member, partitions in partitions_by_member(ordinals, self._log.partitions(self._topic)).items()
        ]

    async def _beat(self) -> None:
        """Send heartbeats until the generation ends. FencedError, DeadlineError: raised by the next call."""
        coordinator = self._coordinator
        while True:
            await asyncio.sleep(_HEARTBEAT_S)
            request = Heartbeat(coordinator.group, self._generation, self._member, self._instance)
            _, code = await coordinator.ask(f"for a heartbeat of {self._instance}", request, held=True)
            if code == FENCED:
                raise self._fenced()
            if code not in OUTDATED and code != OK:
                raise StreamsError(f"{coordinator.group} refuses a heartbeat of {self._instance}: {name_of(code)}")
            if code in OUTDATED:
                self.revoked.set()
                # While the others join again it remains a member, and settles.
                if code != REBALANCING:
                    return

    def _fenced(self) -> FencedError:
        self._known = False  # the group knows another process by this name now, which must not be removed from it
        return FencedError(f"another process has taken the place of {self._instance}; each ordinal is for one process")

    def _on_beating_end(self, task: asyncio.Task[None]) -> None:
        if task is self._beating:
            self.revoked.set()

    def _raise_beating_error(self) -> None:
        if self._beating is not None and self._beating.done():
            self._beating.result()

    def _stop_beating(self) -> None:
        task, self._beating = self._beating, None
        if task is not None:
            task.cancel()

    async def _leave(self) -> None:
        """Give the partitions to the others now and not after SESSION_S; that it cannot is no error."""
        if not self._known:
            return
        # A member whose join was cancelled does not know its member id: the group removes it by its instance name.
        request = LeaveGroup(self._coordinator.group, [(self._member, self._instance)])
        try:
            async with asyncio.timeout(_LEAVE_S):
                await self._coordinator.ask("to leave", request)
        except (TimeoutError, StreamsError):
            return


def partitions_by_member(ordinals: Mapping[str, int], partitions: Sequence[int]) -> dict[str, list[int]]:
    """Member → its partitions: p goes to the (p % n)-th of the n members in the order of their ordinals.

    With the ordinals 0 to n - 1 these are the partitions of `FixedAssignments`. Surplus members get none.
    """
    members = sorted(ordinals, key=lambda member: (ordinals[member], member))
    return {member: [p for p in partitions if p % len(members) == i] for i, member in enumerate(members)}


def _ordinal(instance: str | None) -> int:
    number = (instance or "").rpartition(".")[2]
    return int(number) if number.isdecimal() else 1 << 30


def _partitions_in(data: bytes) -> frozenset[int]:
    if not data:
        return frozenset()
    assignment: Any = ConsumerProtocolMemberAssignment.decode(data)
    return frozenset(partition for _, partitions in assignment.assignment for partition in partitions)
