"""What works around aiokafka 0.14.0, in one place: each fix with its symptom and its upstream issue where there is one.

`pace`                 a reader at the end of the log must wait there and not spin (akin to aio-libs/aiokafka#1155)
`committed_offsets`    a coordinator that is loading looks like a group without commits (no upstream issue known)
`close`                `stop()` of a client can hang while no broker is there (aio-libs/aiokafka#1101, #1013, #659),
                       and ends by the CancelledError of its own tasks (no upstream issue known)
`stop_producer`        a fenced producer keeps its connections open after `stop()` (no upstream issue known)

Two more have to stand where they act: `streams.log.transaction` awaits every delivery, since `commit_transaction()`
succeeds although a send in it failed, and `streams.stages.group_coordinator` with `streams.stages.group_protocol`
speaks a static group member's part of the protocol (aio-libs/aiokafka#682, closed without that part).

All of them rest on parts of aiokafka that are not public, as they are in `AIOKAFKA_VERSION`. The tests fail on another
version: whoever raises the pin checks each fix against it first.
"""

import asyncio
import contextlib
from collections.abc import Awaitable
from typing import Any, Final

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError, NoError
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from streams.cancellation import StrayCancellationError, owned

AIOKAFKA_VERSION: Final = "0.14.0"
"""The version that the fixes of this module and the group protocol of `streams.stages` were written for."""

ABANDON_S: Final = 1.0
"""How long a client that is of no use any more gets to close."""

_AT_ONCE_S: Final = 0.02
_PAUSE_S: Final = 0.03
_RETRY_S: Final = 0.2


def pace(consumer: Any) -> None:
    """Keep a started `consumer` from spinning at the end of the log.

    A broker is to hold an empty fetch for `fetch_max_wait`. The embedded one (noida-db 0.2.3) answers at once: one idle
    reader made 4,000 fetches a second and took 80 % of a core. aiokafka has no setting against that, so its fetch from
    one broker is wrapped: where it came back at once and empty, the next one waits. A broker that holds empty fetches
    is not slowed down.
    """
    fetcher = consumer._fetcher
    fetch = fetcher._proc_fetch_request
    clock = asyncio.get_running_loop().time

    async def paced(assignment: Any, node_id: Any, request: Any) -> bool:
        asked_s = clock()
        found: bool = await fetch(assignment, node_id, request)
        if not found and clock() - asked_s < _AT_ONCE_S:
            # aiokafka cancels a fetch at close and on a new assignment, and expects it to return then.
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(_PAUSE_S)
        return found

    fetcher._proc_fetch_request = paced


async def committed_offsets(
    admin: AIOKafkaAdminClient, group: str, wanted: list[TopicPartition]
) -> dict[TopicPartition, OffsetAndMetadata]:
    """What is committed of every wanted partition, -1 for nothing; the caller sets the deadline. KafkaError.

    While the coordinator loads the group, it answers with an error and no partitions, and aiokafka, which does not look
    at that error, returns an empty dictionary: a stage that believed it would begin again at the start of its topic.
    """
    while True:
        try:
            found: dict[TopicPartition, OffsetAndMetadata] = await admin.list_consumer_group_offsets(
                group, partitions=wanted
            )
            if found.keys() >= set(wanted):
                return found
        except KafkaError as error:
            # aiokafka raises a partition's error by the code of the whole answer, which is then that of NoError.
            if not (error.retriable or isinstance(error, NoError)):
                raise
        await asyncio.sleep(_RETRY_S)


async def close(closing: Awaitable[Any], seconds: float) -> None:
    """Await a client's close for so long and no longer: it flushes first, which never ends with the broker down.

    A client cancels tasks of its own and awaits them, and their CancelledError comes out of `stop()`. In an `__aexit__`
    it would take the place of the error that ends the service, which would then end without one; so only a cancellation
    of the caller itself leaves this function. (Not a task of its own: whoever cancels all tasks of a loop would cancel
    that one too, before its first step, and leave the client open.)
    """
    try:
        async with asyncio.timeout(seconds):
            await owned(closing, "the close of a client")
    except (TimeoutError, KafkaError, OSError, StrayCancellationError):
        return


async def stop_producer(producer: AIOKafkaProducer, seconds: float) -> None:
    """Stop `producer` and close its connections, which `stop` leaves open where it raises, as for a fenced producer."""
    try:
        await close(producer.stop(), seconds)
    finally:
        # Where the caller is cancelled meanwhile as well.
        await close(producer.client.close(), ABANDON_S)
