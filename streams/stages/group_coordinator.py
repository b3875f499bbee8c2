"""Requests to a consumer group's coordinator: look-up, retries, deadlines.

aiokafka 0.14.0's own group coordinator does not do for static members (aio-libs/aiokafka#682):

- it leaves them in the group at the end, so that their partitions rest until the session expires;
- it names their instance in neither heartbeats nor commits, so that a second process with the same instance cannot be
  told from an expired session, and the two fence each other indefinitely;
- it logs the errors of rebalance listeners and continues (kafka-python's #917 is the same);
- it ties a group's partitions to a consumer that fetches them before the hand-over is done.

Here aiokafka's connections and requests are used, and those it lacks come from `streams.stages.group_protocol`: both
are not public and bound to `streams.log.aiokafka_fixes.AIOKAFKA_VERSION`, which a test compares with what is installed.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Any, Final

from aiokafka.client import ConnectionGroup, CoordinationType
from aiokafka.errors import KafkaError, for_code

from streams.errors import StreamsError
from streams.log.aiokafka_fixes import ABANDON_S, close
from streams.log.clients import Log, within
from streams.log.retry import started
from streams.stages.group_protocol import OffsetCommit

OK: Final = 0
ILLEGAL_GENERATION: Final = 22
UNKNOWN_MEMBER: Final = 25
REBALANCING: Final = 27
MEMBER_ID_REQUIRED: Final = 79
FENCED: Final = 82

OUTDATED: Final = frozenset({ILLEGAL_GENERATION, UNKNOWN_MEMBER, REBALANCING})
"""The generation has ended, or is about to: the member must join again."""

_TRANSIENT: Final = frozenset({7, 14, 15, 16})
"""Request timed out; coordinator loading, not available, not on this node (any more)."""

_RETRY_S: Final = 0.3
_NO_GENERATION: Final = -1


class Coordinator:
    """Requests to the coordinator of `group`, wherever it is. Use as an async context."""

    def __init__(self, log: Log, group: str) -> None:
        self.group = group
        self._settings = log.settings
        self._node: int | None = None
        self._client = log.client()

    async def __aenter__(self) -> "Coordinator":
        try:
            await started(self._client.bootstrap, self._settings.bootstrap, self._settings.call_timeout_s)
        except BaseException:
            await close(self._client.close(), ABANDON_S)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await close(self._client.close(), 5.0)

    async def ask(
        self,
        what: str,
        request: Any,
        error_of: Callable[[Any], int] = lambda answer: int(answer.error_code),
        held: bool = False,
    ) -> tuple[Any, int]:
        """The answer and its error code, which is no transient one: those are retried.

        `what` completes "waited … s". `held`: the broker may hold the answer back, as that to a join; such requests
        have a connection of their own. StreamsError: the broker does not know the request. DeadlineError.
        """
        connection = ConnectionGroup.COORDINATION if held else ConnectionGroup.DEFAULT
        return await within(self._settings.call_timeout_s, what, self._ask(what, request, error_of, connection))

    async def _ask(
        self, what: str, request: Any, error_of: Callable[[Any], int], connection: ConnectionGroup
    ) -> tuple[Any, int]:
        while True:
            try:
                if self._node is None:
                    self._node = await self._client.coordinator_lookup(CoordinationType.GROUP, self.group)
                answer = await self._client.send(self._node, request, group=connection)
                code = error_of(answer)
                if code not in _TRANSIENT:
                    return answer, code
            except NotImplementedError as error:
                raise StreamsError(f"the broker is too old for consumer groups with static members: {error}") from error
            except KafkaError as error:
                if not error.retriable:
                    raise StreamsError(f"waited {what}: {type(error).__name__} {error}") from error
                with contextlib.suppress(KafkaError):
                    await self._client.force_metadata_update()
            self._node = None
            await asyncio.sleep(_RETRY_S)

    async def commit(
        self,
        topic: str,
        offsets: Mapping[int, tuple[int, str]],
        generation: int = _NO_GENERATION,
        member: str = "",
        instance: str | None = None,
    ) -> int:
        """Commit `(offset, metadata)` by partition of `topic` (full name): OK, FENCED or one of OUTDATED.

        StreamsError: the broker refuses them.
        """
        entries = [(partition, offset, -1, metadata) for partition, (offset, metadata) in offsets.items()]
        request = OffsetCommit(self.group, generation, member, instance, [(topic, entries)])
        _, code = await self.ask(f"for the commit of {self.group}", request, _worst)
        if code not in (OK, FENCED) and code not in OUTDATED:
            raise StreamsError(f"offsets of {self.group} cannot be committed: {name_of(code)}")
        return code


def _worst(answer: Any) -> int:
    codes = [int(code) for _, partitions in answer.topics for _, code in partitions]
    return next((code for code in codes if code != OK), OK)


def name_of(code: int) -> str:
    """The name of an error code."""
    return str(for_code(code).__name__)
