"""The aggregator ends when the clock is set, and only then."""

import asyncio
import time
from pathlib import Path

import pytest

from consumers.groups import service as group_service
from consumers.groups.service import clock_step
from streams.errors import StreamsError
from tests.builders import service_of
from tests.run_logs import log_at


def test_a_step_is_what_the_wall_clock_did_and_time_did_not() -> None:
    assert clock_step((1000.0, 5.0), (1100.0, 105.0)) == 0.0
    assert clock_step((1000.0, 5.0), (4700.0, 105.0)) == 3600.0
    assert clock_step((1000.0, 5.0), (100.0, 105.0)) == -1000.0


async def test_the_service_ends_when_the_clock_was_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(group_service, "_LOOK_S", 0.01)
    async with service_of(log_at(), tmp_path, "groups") as service:
        watching = asyncio.create_task(group_service._watch_clock(service))
        await asyncio.sleep(0.05)
        assert not watching.done()
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() - 90.0)
        with pytest.raises(StreamsError, match="the clock was set by -90 s"):
            await asyncio.wait_for(watching, 5)
