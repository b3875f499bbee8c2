"""Rendezvous and failure detection: one plain TCP connection from every rank to rank 0, held for the rank's lifetime.

    rank 1 ── {"rank": 1, "run": "…"} ─▶ rank 0    the kernel closes the connections of a killed process
    rank 1 ◀─ {"run": "…"} ────── rank 0   at once: confirms that this port is rank 0 of the same run
    rank 1 ◀─ {"store": 40123} ── rank 0   all ranks have connected; from now on the exit of one ends them all
    rank 1 ◀─ {"failed": "…"} ─── rank 0   the deadline has passed; the sentence names the missing ranks
    rank 1 ◀── {"stopping": 1} ─▶ rank 0   this rank got a SIGTERM before the heartbeat, which would carry it, has begun

Before the rendezvous is complete, an exit is harmless: the restarted process takes the rank's place, and a restarted
rank 0 is waited for. Without these connections, a rank killed while process groups form or models load would be noticed
only by a collective's time-out.
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
from learner.ranks.rendezvous import Endpoint, endpoint_changes, rank0_endpoint

_REPLY_GRACE_S: Final = 2.0
"""How long after its own deadline rank 0's message may arrive."""

_GREETING_S: Final = 5.0
"""How long the other end of a new connection may take to send its first line."""


@dataclass(frozen=True)
class RendezvousInfo:
    """What process groups are formed from: rank 0's TCP store at `host`:`port`; `listening`: its socket, on rank 0."""

    rank: int
    world: int
    host: str
    port: int
    listening: socket.socket | None = None


@dataclass(frozen=True)
class PeerExit:
    """The connection to `rank` has ended; `stopping`: the rank had announced that it was asked to stop."""

    rank: int
    stopping: bool


class Lifeline:
    """One rank's connections, used in one event loop: `rendezvous` once, with `wait_for_exit` awaited concurrently."""

    def __init__(self, rank: int, world: int, endpoint: Endpoint, run: str = "") -> None:
        self._rank = rank
        self._world = world
        self._endpoint = endpoint
        # On one machine the directory tells runs of one name apart; across machines its path may differ between ranks.
        self._run = run if endpoint.file is None else f"{run} {endpoint.file.parent.resolve()}"
        self._complete = False
        self._waiting_since = time.monotonic()
        self._connected = asyncio.Event()
        self._peers: dict[int, asyncio.StreamWriter] = {}
        self._exits: asyncio.Queue[PeerExit] = asyncio.Queue()
        self._server: asyncio.Server | None = None
        self._watching: asyncio.Task[None] | None = None

    async def rendezvous(self, timeout_s: float) -> RendezvousInfo:
        """Wait until all ranks have connected. RankError, naming the missing ranks: one has not after `timeout_s`."""
        self._waiting_since = time.monotonic()
        if self._world == 1:
            return self._open_store_socket()
        try:
            async with asyncio.timeout(timeout_s) as limit:
                return await (self._accept_peers() if self._rank == 0 else self._find_rank0(limit, timeout_s))
        except TimeoutError as error:
            sentence = f"learner rank {self._rank} waited {timeout_s:g} s for {self._missing()}"
            self._send({"failed": sentence})
            raise RankError(sentence) from error
        except OSError as error:
            raise RankError(
                f"learner rank {self._rank} cannot listen or connect at {self._endpoint}: {error}"
            ) from error

    async def wait_for_exit(self) -> PeerExit:
        """Wait until a peer exits after the rendezvous, or announces a stop; ranks above 0 observe rank 0 alone."""
        return await self._exits.get()

    def announce_stop(self) -> None:
        """Report to the peers that this rank was asked to stop, so that they stop too."""
        self._send({"stopping": 1})

    def waits(self) -> list[str]:
        """What this rank waits for, as lines for `status`."""
        if self._complete or self._world == 1:
            return []
        return [f"waits for {self._missing()} since {time.monotonic() - self._waiting_since:.0f} s"]

    def close(self) -> None:
        """Close all connections. Does not wait."""
        if self._server is not None:
            self._server.close()
        if self._watching is not None:
            self._watching.cancel()
        for writer in self._peers.values():
            writer.close()

    def _missing(self) -> str:
        if self._rank != 0:
            expected = "report that all ranks have connected" if self._peers else f"listen at {self._endpoint}"
            return f"learner rank 0 to {expected}"
        absent = [str(rank) for rank in range(1, self._world) if rank not in self._peers]
        return f"learner rank{'s' * (len(absent) > 1)} {', '.join(absent)} of {self._world} to connect"

    async def _accept_peers(self) -> RendezvousInfo:
        self._server = await asyncio.start_server(self._serve_peer, self._endpoint.listen, self._endpoint.port)
        self._endpoint.publish_port(self._server.sockets[0].getsockname()[1])
        while len(self._peers) < self._world - 1:
            self._connected.clear()
            await self._connected.wait()
        self._complete = True
        info = self._open_store_socket()
        self._send({"store": info.port})
        return info

    def _open_store_socket(self) -> RendezvousInfo:
        listening = socket.create_server((self._endpoint.listen, 0), backlog=4 * self._world)
        return RendezvousInfo(self._rank, self._world, self._endpoint.host, listening.getsockname()[1], listening)

    async def _serve_peer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Hold the connection of another rank until it ends."""
        # Closing the event loop cancels this handler, and asyncio's streams log an error for a cancelled handler.
        with suppress(asyncio.CancelledError):
            await self._hold_peer(reader, writer)

    async def _hold_peer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        greeting: dict[str, Any] = {}
        with suppress(TimeoutError):
            greeting = await _read_greeting(reader)
        rank = greeting.get("rank")
        if (
            self._complete
            or greeting.get("run") != self._run
            or not isinstance(rank, int)
            or not 0 < rank < self._world
        ):
            # After the rendezvous this is a restarted rank: it retries until its first exit has ended this process too.
            writer.close()
            return
        writer.write(_line({"run": self._run}))
        self._peers[rank] = writer
        self._connected.set()
        stopping = "stopping" in await _read_message(reader)
        writer.close()
        if self._peers.get(rank) is not writer:
            return  # the restarted process has connected already
        if self._complete or stopping:
            self._exits.put_nowait(PeerExit(rank, stopping))
        else:
            del self._peers[rank]

    async def _find_rank0(self, limit: asyncio.Timeout, timeout_s: float) -> RendezvousInfo:
        with endpoint_changes(self._endpoint) as changed:
            while True:
                if (info := await self._ask_rank0(limit, timeout_s)) is not None:
                    return info
                await changed.wait()

    async def _ask_rank0(self, limit: asyncio.Timeout, timeout_s: float) -> RendezvousInfo | None:
        """Connect to rank 0 and wait for its answer; None: it is not there, has ended, or accepts no more ranks."""
        connection = await self._connect()
        if connection is None:
            return None
        reader, writer = connection
        # Rank 0 may have started its deadline later, and only rank 0 can name the missing ranks: allow it that time.
        limit.reschedule(asyncio.get_running_loop().time() + timeout_s + _REPLY_GRACE_S)
        answer = await _read_message(reader)
        if "store" in answer:
            self._complete = True
            self._watching = asyncio.create_task(self._watch_rank0(reader), name="lifeline")
            return RendezvousInfo(self._rank, self._world, self._endpoint.host, answer["store"])
        if "failed" in answer:
            raise RankError(answer["failed"])
        del self._peers[0]
        writer.close()
        if "stopping" in answer:
            self._exits.put_nowait(PeerExit(0, stopping=True))
        return None

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """A connection to rank 0 of this run; None: nothing, or another program, listens at its endpoint."""
        while (port := self._endpoint.read_port()) is not None:
            try:
                reader, writer = await asyncio.open_connection(self._endpoint.host, port)
            except OSError:
                return None
            self._peers[0] = writer
            self._send({"rank": self._rank, "run": self._run})
            try:
                if (await _read_greeting(reader)).get("run") == self._run:
                    return reader, writer
                silent = False
            except TimeoutError:
                silent = True
            del self._peers[0]
            writer.close()
            if not silent:
                return None
            # A busy rank 0 may be as silent as another program, and no file change will follow: try again.
        return None

    async def _watch_rank0(self, reader: asyncio.StreamReader) -> None:
        self._exits.put_nowait(PeerExit(0, "stopping" in await _read_message(reader)))

    def _send(self, message: dict[str, Any]) -> None:
        for writer in self._peers.values():
            if not writer.is_closing():
                writer.write(_line(message))


def rendezvous(rank: int, world: int, directory: Path, timeout_s: float) -> RendezvousInfo:
    """A rendezvous on this machine for ranks that are not a service: no event loop, no failure detection afterwards.

    Blocking. RankError: see `Lifeline.rendezvous`.
    """

    async def connect() -> RendezvousInfo:
        lifeline = Lifeline(rank, world, rank0_endpoint(directory, 0))
        try:
            return await lifeline.rendezvous(timeout_s)
        finally:
            lifeline.close()

    return asyncio.run(connect())


def _line(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


async def _read_greeting(reader: asyncio.StreamReader) -> dict[str, Any]:
    """The first message. TimeoutError: the program at the other end sends nothing."""
    async with asyncio.timeout(_GREETING_S):
        return await _read_message(reader)


async def _read_message(reader: asyncio.StreamReader) -> dict[str, Any]:
    """The next message; empty where the connection has ended, or the line is not a JSON object."""
    with suppress(OSError, ValueError):
        message = json.loads(await reader.readline() or b"{}")
        if isinstance(message, dict):
            return message
    return {}
