"""Asking a broker that may be away or not ready yet, as while it restarts, until it answers."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaConnectionError, KafkaError, NoError
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from streams.errors import BrokerAwayError

_RETRY_S: Final = 0.2


async def started(starting: Callable[[], Awaitable[Any]], bootstrap: str, seconds: float) -> None:
    """Start a client: `starting` is its `start`, which connects once. BrokerAwayError after `seconds`.

    A service that is started while the broker restarts waits here: its death and another start would take longer.
    """
    try:
        async with asyncio.timeout(seconds):
            while True:
                try:
                    await starting()
                    return
                except KafkaConnectionError:
                    await asyncio.sleep(_RETRY_S)
    except TimeoutError as error:
        raise BrokerAwayError(f"for the broker at {bootstrap}", seconds) from error


async def committed_offsets(
    admin: AIOKafkaAdminClient, group: str, wanted: list[TopicPartition]
) -> dict[TopicPartition, OffsetAndMetadata]:
    """What is committed of every wanted partition, -1 for nothing; the caller sets the deadline. KafkaError.

    While the coordinator loads the group, it answers with an error and no partitions, and aiokafka 0.14 returns that
    as an empty dictionary: taken at its word, a stage would begin again at the start of its topic.
    """
    while True:
        try:
            found: dict[TopicPartition, OffsetAndMetadata] = await admin.list_consumer_group_offsets(
                group, partitions=wanted
            )
            if found.keys() >= set(wanted):
                return found
        except KafkaError as error:
            # A partition's own error is raised by aiokafka as NoError.
            if not (error.retriable or isinstance(error, NoError)):
                raise
        await asyncio.sleep(_RETRY_S)
