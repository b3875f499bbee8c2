"""A loop that stands still ends its process, and nothing else does."""

import asyncio
import subprocess
import sys

import pytest

from streams.runtime.loop_watchdog import LoopWatchdog

ENDLESS = """
import asyncio
from streams.runtime.loop_watchdog import LoopWatchdog

async def main():
    asyncio.create_task(LoopWatchdog(lambda: "it processes scores/0@17", 0.6).beat())
    await asyncio.sleep(0)
    while True:
        pass

asyncio.run(main())
"""


def test_a_process_whose_loop_does_not_come_back_ends_and_says_what_it_was_at() -> None:
    ended = subprocess.run([sys.executable, "-c", ENDLESS], capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 1
    assert "it processes scores/0@17: nothing else ran for 0.6 s" in ended.stderr
    assert "in main" in ended.stderr, "where it stands"


async def test_a_loop_that_runs_is_left_alone_and_the_thread_ends_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("streams.runtime.loop_watchdog.end_process", said.append)
    watchdog = LoopWatchdog(lambda: "it", 1.2)
    beating = asyncio.create_task(watchdog.beat())
    async with asyncio.timeout(60):
        while watchdog._beats < 60:
            await asyncio.sleep(0.01)
    beating.cancel()
    await asyncio.wait([beating])
    assert not said and watchdog._over.is_set()
