"""A reader at the end of the log must wait there and not spin.

A broker is to hold an empty fetch for `fetch_max_wait`. The embedded one (noida-db 0.2.3) answers at once: one idle
reader made 4,000 fetches a second and took 80 % of a core. aiokafka 0.14.0 (pinned) has no setting against that, so its
fetch of one broker is wrapped: where it came back at once and empty, the next one waits.
"""

import asyncio
import contextlib
from typing import Any, Final

_AT_ONCE_S: Final = 0.02
_PAUSE_S: Final = 0.03


def pace(consumer: Any) -> None:
    """Keep a started `consumer` from spinning; a broker that holds empty fetches is not slowed by it."""
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
