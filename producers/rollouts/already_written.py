"""What a predecessor wrote before it died, so that a request taken again is not generated again."""

import asyncio
import logging
from collections import defaultdict

import msgspec

from schemas.events import GroupRequested
from streams.context import RunContext
from streams.log.history import read_topic
from streams.record import Record

logger = logging.getLogger(__name__)

_MARGIN_S = 60.0
"""Read further back than the request, so that older ones from other partitions seldom need another reading."""


class _Head(msgspec.Struct, frozen=True, tag_field="type", tag="RolloutCompleted"):
    """The identity of a rollout, without its arrays."""

    group_id: str
    index: int


class AlreadyWritten:
    """Rollouts that were on the log before this process, read when a request turns up that is older than it.

    A predecessor's last record may still be missed (it was on its way when the process died); the aggregator keeps
    the first of what is written twice, and the other ends as `duplicate`.
    """

    def __init__(self, context: RunContext, started_s: float) -> None:
        self._context = context
        self._started_s = started_s
        self._read_since_s = started_s
        self._written: dict[str, set[int]] = {}
        self._reading = asyncio.Lock()

    async def written(self, request: GroupRequested, record: Record) -> set[int]:
        """Indices of the request's rollouts that need not be generated. StreamsError: the log cannot be read."""
        if record.time_s >= self._started_s:
            return set()
        async with self._reading:
            if record.time_s < self._read_since_s:
                since_s = record.time_s - _MARGIN_S
                self._written = await asyncio.to_thread(self._read, since_s)
                self._read_since_s = since_s
        return self._written.get(request.group_id, set())

    def _read(self, since_s: float) -> dict[str, set[int]]:
        context = self._context
        decoder = msgspec.msgpack.Decoder(_Head)
        written: defaultdict[str, set[int]] = defaultdict(set)
        for record in read_topic(context.bootstrap, context.run, "rollouts", since_s=since_s):
            # A group's rollouts share the partition number of its request.
            if record.partition % context.replicas != context.ordinal:
                continue
            try:
                head = decoder.decode(record.value)
            except msgspec.DecodeError as error:
                logger.warning("passed over %s: %s", record.ref, error)
                continue
            written[head.group_id].add(head.index)
        return dict(written)
