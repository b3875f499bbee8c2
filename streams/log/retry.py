"""Starting a client while the broker may be away, as during its restart: again until it answers."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiokafka.errors import KafkaConnectionError

from streams.cancellation import owned
from streams.errors import BrokerAwayError

logger = logging.getLogger(__name__)

_RETRY_S: Final = 0.2
_SAY_AFTER_S: Final = 4.0
_SAY_EVERY_S: Final = 10.0


async def started(starting: Callable[[], Awaitable[Any]], bootstrap: str, seconds: float) -> None:
    """Start a client: `starting` is its `start`, which connects once. BrokerAwayError after `seconds`.

    A service that starts while the broker restarts waits here: to fail and be started again would take longer.
    """
    began_s = time.monotonic()
    say_s = began_s + _SAY_AFTER_S
    try:
        async with asyncio.timeout(seconds):
            while True:
                try:
                    await owned(starting(), f"the start of a client of {bootstrap}")
                    return
                except KafkaConnectionError as error:
                    if (now_s := time.monotonic()) >= say_s:
                        say_s = now_s + _SAY_EVERY_S
                        logger.warning(
                            "the broker at %s is not reachable since %.0f s: %s", bootstrap, now_s - began_s, error
                        )
                    await asyncio.sleep(_RETRY_S)
    except TimeoutError as error:
        raise BrokerAwayError(f"for the broker at {bootstrap}", seconds) from error
