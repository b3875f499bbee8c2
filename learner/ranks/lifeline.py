"""How the ranks meet, and how an end is noticed at once: a plain connection from every rank to rank 0.

    rank 1 ── {"rank": 1, "run": "…"} ─▶ rank 0    held from then on; the kernel closes a killed process's connections
    rank 1 ◀─ {"run": "…"} ────── rank 0   at once: it is rank 0 of the same run, and no other program at that port
    rank 1 ◀─ {"store": 40123} ── rank 0   all are here: they have met, and from now on none goes on without another
    rank 1 ◀─ {"failed": "…"} ─── rank 0   the deadline has passed, and who did not come
    rank 1 ◀── {"stopping": 1} ─▶ rank 0   told to stop before the heartbeat, which says so later, has begun

Before they have met, a rank that ends harms nobody: its successor takes its place, and that of rank 0 is waited for.
Without this a rank killed while groups form or models load would be waited for until a collective's time-out.
"""

import asyncio
import json
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from learner.errors import RankError
from learner.ranks.rendezvous import Place, changes, place_of

_VERDICT_S: Final = 2.0
"""How much later than its own deadline rank 0's word may arrive."""


_GREETING_S: Final = 5.0
"""How long who is at the other end may take to say who it is."""


@dataclass(frozen=True)
class Meeting:
    """What the ranks' process groups are made from: rank 0's store at `host`:`port`, which listens on `listening`."""

    rank: int
    world: int
    host: str
    port: int
    listening: socket.socket | None = None


@dataclass(frozen=True)
class End:
    """A rank's connection has ended; `stopping`: as it had said that it would."""

    rank: int
    stopping: bool


class Lifeline:
    """Of one rank, used in one event loop: `meet` first, then await `lost` beside everything else."""

    def __init__(self, rank: int, world: int, place: Place, run: str = "") -> None:
        self._rank = rank
        self._world = world
        self._place = place
        # Two runs of one name on one machine differ in their directory; on several it may have several names.
        self._run = run if place.file is None else f"{run} {place.file.parent.resolve()}"
        self._met = False
        self._since = time.monotonic()
        self._arrival = asyncio.Event()
        self._peers: dict[int, asyncio.StreamWriter] = {}
        self._ends: asyncio.Queue[End] = asyncio.Queue()
        self._server: asyncio.Server | None = None
        self._listening: asyncio.Task[None] | None = None

    async def meet(self, timeout_s: float) -> Meeting:
        """Wait until all ranks are here. RankError: one is not after `timeout_s`, and which."""
        self._since = time.monotonic()
        if self._world == 1:
            return self._opened()
        try:
            async with asyncio.timeout(timeout_s) as limit:
                return await (self._receive() if self._rank == 0 else self._come(limit, timeout_s))
        except TimeoutError as error:
            sentence = f"learner rank {self._rank} waited {timeout_s:g} s for {self._missing()}"
            self._tell({"failed": sentence})
            raise RankError(sentence) from error
        except OSError as error:
            raise RankError(f"learner rank {self._rank} cannot be found at {self._place}: {error}") from error

    async def lost(self) -> End:
        """Wait until a rank ends after all had met; on every rank but rank 0 that is rank 0."""
        return await self._ends.get()

    def stop(self) -> None:
        """Tell the others that this rank was told to stop, and that they are to stop too."""
        self._tell({"stopping": 1})

    def waits(self) -> list[str]:
        """For `status`."""
        if self._met or self._world == 1:
            return []
        return [f"waits for {self._missing()} since {time.monotonic() - self._since:.0f} s"]

    def close(self) -> None:
        """Let go of the others."""
        if self._server is not None:
            self._server.close()
        if self._listening is not None:
            self._listening.cancel()
        for writer in self._peers.values():
            writer.close()

    def _missing(self) -> str:
        if self._rank != 0:
            return f"learner rank 0 to {'say that all are here' if self._peers else f'come to {self._place}'}"
        absent = [str(rank) for rank in range(1, self._world) if rank not in self._peers]
        return f"learner rank{'s' * (len(absent) > 1)} {', '.join(absent)} of {self._world} to come"

    async def _receive(self) -> Meeting:
        self._server = await asyncio.start_server(self._welcome, self._place.listen, self._place.port)
        self._place.tell(self._server.sockets[0].getsockname()[1])
        while len(self._peers) < self._world - 1:
            self._arrival.clear()
            await self._arrival.wait()
        self._met = True
        meeting = self._opened()
        self._tell({"store": meeting.port})
        return meeting

    def _opened(self) -> Meeting:
        listening = socket.create_server((self._place.listen, 0), backlog=4 * self._world)
        return Meeting(self._rank, self._world, self._place.host, listening.getsockname()[1], listening)

    async def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Another rank, as long as it lives."""
        # The loop's end cancels this, and asyncio's streams complain of a handler that ended so.
        with suppress(asyncio.CancelledError):
            await self._hold(reader, writer)

    async def _hold(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said: dict[str, Any] = {}
        with suppress(TimeoutError):
            said = await _greeting(reader)
        rank = said.get("rank")
        if self._met or said.get("run") != self._run or not isinstance(rank, int) or rank not in range(1, self._world):
            # A second life of a rank that was here: it waits until this process, too, has ended of the first's end.
            writer.close()
            return
        writer.write(_line({"run": self._run}))
        self._peers[rank] = writer
        self._arrival.set()
        stopping = "stopping" in await _hear(reader)
        writer.close()
        if self._peers.get(rank) is not writer:
            return  # its successor has come already
        if self._met or stopping:
            self._ends.put_nowait(End(rank, stopping))
        else:
            del self._peers[rank]

    async def _come(self, limit: asyncio.Timeout, timeout_s: float) -> Meeting:
        with changes(self._place) as changed:
            while True:
                if (meeting := await self._try(limit, timeout_s)) is not None:
                    return meeting
                await changed.next()

    async def _try(self, limit: asyncio.Timeout, timeout_s: float) -> Meeting | None:
        """Ask rank 0, wherever it is said to be; None: there is none, it has ended, or waits for no one any more."""
        found = await self._connect()
        if found is None:
            return None
        reader, writer = found
        # Rank 0 may have begun to wait later, and it alone can say who is missing: it does so within its own time.
        limit.reschedule(asyncio.get_running_loop().time() + timeout_s + _VERDICT_S)
        said = await _hear(reader)
        if "store" in said:
            self._met = True
            self._listening = asyncio.create_task(self._listen(reader), name="lifeline")
            return Meeting(self._rank, self._world, self._place.host, said["store"])
        if "failed" in said:
            raise RankError(said["failed"])
        del self._peers[0]
        writer.close()
        if "stopping" in said:
            self._ends.put_nowait(End(0, stopping=True))
        return None

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """A connection to rank 0 of this run; None: nobody, or somebody else, is at its place."""
        while (port := self._place.told()) is not None:
            try:
                reader, writer = await asyncio.open_connection(self._place.host, port)
            except OSError:
                return None
            self._peers[0] = writer
            self._tell({"rank": self._rank, "run": self._run})
            try:
                if (await _greeting(reader)).get("run") == self._run:
                    return reader, writer
                silent = False
            except TimeoutError:
                silent = True
            del self._peers[0]
            writer.close()
            if not silent:
                return None
            # A busy rank 0 may be as silent as another program, and nothing tells of a change: it is asked again.
        return None

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        self._ends.put_nowait(End(0, "stopping" in await _hear(reader)))

    def _tell(self, said: dict[str, Any]) -> None:
        for writer in self._peers.values():
            if not writer.is_closing():
                writer.write(_line(said))


def meet(rank: int, world: int, directory: Path, timeout_s: float) -> Meeting:
    """Meet on this machine without an event loop, and let go of the lifelines again: for ranks that are no service."""

    async def met() -> Meeting:
        lifeline = Lifeline(rank, world, place_of(directory, 0))
        try:
            return await lifeline.meet(timeout_s)
        finally:
            lifeline.close()

    return asyncio.run(met())


def _line(said: dict[str, Any]) -> bytes:
    return json.dumps(said).encode() + b"\n"


async def _greeting(reader: asyncio.StreamReader) -> dict[str, Any]:
    """The first line. TimeoutError: a program that says nothing."""
    async with asyncio.timeout(_GREETING_S):
        return await _hear(reader)


async def _hear(reader: asyncio.StreamReader) -> dict[str, Any]:
    """The next line; nothing where the connection has ended, or what speaks is no rank."""
    with suppress(OSError, ValueError):
        said = json.loads(await reader.readline() or b"{}")
        if isinstance(said, dict):
            return said
    return {}
