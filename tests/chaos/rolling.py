"""Reward consumers that come and go, and a rolling restart, between the blows of a campaign.

verdict = await Rolling(directory, Roll(...)).run(roll())
"""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from streams.processes.child import Child
from tests.chaos.campaign import Campaign
from tests.chaos.schedule import Blow
from tests.chaos.shape import LIGHT, Shape

ONE_BY_ONE: Final = ("dispatcher", "producer", "rewards", "groups-0", "groups-1", "batches", "learner")
_JOIN_S: Final = 60.0
_LEAVE_S: Final = 60.0


@dataclass(frozen=True)
class Roll(Shape):
    """The light shape with one reward consumer to begin with."""

    @property
    def tables(self) -> dict[str, dict[str, Any]]:
        """What differs from the demo's configuration."""
        return {**super().tables, "replicas": {"rewards": 1, "groups": 2}}


SHAPE: Final = Roll(
    LIGHT.ranks, LIGHT.disk_mib, LIGHT.point_s, LIGHT.warm_s, LIGHT.quiet_s, LIGHT.stand_ins, LIGHT.learner
)


def roll(kills: int = 3) -> Iterator[Blow]:
    """1 → 3 → 2 → 1 reward consumers, kills of the one that is left, then every service once, one after the other."""
    yield Blow("add", "1,5", 0.0)
    yield Blow("remove", "1", 0.0, settled=True)
    yield Blow("remove", "5", 0.0, settled=True)
    for _ in range(kills):
        yield Blow("kill", "rewards", 0.5, settled=True)
    for name in ONE_BY_ONE:
        yield Blow("term", name, 0.0, settled=True)


class Rolling(Campaign):
    """A campaign that knows how to add and remove reward consumers; `left` has the exit codes of those removed."""

    def __init__(self, directory: Path, shape: Shape) -> None:
        super().__init__(directory, shape)
        self._added: dict[str, Child] = {}
        self.left: dict[str, int | None] = {}
        self.shares: list[list[int]] = []

    def _start(self, blow: Blow) -> None:
        match blow.kind:
            case "add":
                self._act(self._add(blow.target.split(",")))
            case "remove":
                self._act(self._remove(blow.target))
            case _:
                super()._start(blow)

    async def _add(self, ordinals: list[str]) -> None:
        """As from another terminal: `eachprompt run rewards --ordinal K --dir DIR`."""
        for ordinal in ordinals:
            argv = [sys.executable, "-P", "-m", "deploy.cli.main", "run", "rewards", "--ordinal", ordinal]
            log = self._pipeline.config.layout.log(f"rewards-{ordinal}")
            child = Child.start([*argv, "--dir", str(self._directory)], log=log, name=f"rewards-{ordinal}")
            self._added[ordinal] = child
        await self._shared(1 + len(self._added))

    async def _remove(self, ordinal: str) -> None:
        child = self._added.pop(ordinal)
        began = time.time()
        os.kill(child.pid, signal.SIGTERM)
        self.left[ordinal] = await asyncio.to_thread(child.wait, _LEAVE_S)
        await self._shared(1 + len(self._added))
        self._count("remove rewards", "rewards", began, time.time())

    async def _shared(self, members: int) -> None:
        """Until so many replicas have all partitions between them, in equal parts."""
        end_s = time.monotonic() + _JOIN_S
        fair = [4 // members + (k < 4 % members) for k in range(members)]
        while (shares := await self._partitions()) != fair:
            if time.monotonic() > end_s:
                self._progress.contradictions.append(f"{members} reward consumers have {shares} and not {fair}")
                return
            await asyncio.sleep(0.1)
        self.shares.append(shares)

    async def _partitions(self) -> list[int]:
        """How many partitions each running reward consumer says that it has, the most first."""
        found = []
        for path in self._pipeline.config.layout.health.glob("rewards*.json"):
            try:
                said = json.loads(path.read_text())
                async with asyncio.timeout(2.0):
                    reader, writer = await asyncio.open_connection("127.0.0.1", said["port"])
                    writer.write(b"GET /status HTTP/1.0\r\n\r\n")
                    answer = await reader.read()
                    writer.close()
                gauges = json.loads(answer.partition(b"\r\n\r\n")[2])["gauges"]
                found.append(int(gauges.get("partitions", 0)))
            except (OSError, ValueError, TimeoutError):
                continue
        return sorted(found, reverse=True)

    def end(self) -> None:
        """Nothing that was added is left behind."""
        for child in self._added.values():
            child.kill()
            child.wait(5)
