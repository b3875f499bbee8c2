"""Starting a client while the broker may be away, as during its restart: again until it answers."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiokafka.errors import KafkaConnectionError

from streams.cancellation import owned
from streams.errors import BrokerAwayError

_RETRY_S: Final = 0.2


async def started(starting: Callable[[], Awaitable[Any]], bootstrap: str, seconds: float) -> None:
    """Start a client: `starting` is its `start`, which connects once. BrokerAwayError after `seconds`.

    A service that starts while the broker restarts waits here: to fail and be started again would take longer.
    """
    try:
        async with asyncio.timeout(seconds):
            while True:
                try:
                    await owned(starting(), f"the start of a client of {bootstrap}")
                    return
                except KafkaConnectionError:
                    await asyncio.sleep(_RETRY_S)
    except TimeoutError as error:
        raise BrokerAwayError(f"for the broker at {bootstrap}", seconds) from error
