"""A plain connection from every rank to rank 0, held from the moment they meet: its end is the end of a rank.

The heartbeat begins when the model is loaded, and a collective waits for minutes; a rank that is killed while the
others form their groups or load would be waited for that long. The kernel closes a killed process's connections at
once.
"""

import asyncio
import socket
import threading
from contextlib import suppress
from typing import Final

from torch._C._distributed_c10d import Store

_KEY: Final = "lifeline"
_RANK_BYTES: Final = 4
_CONNECT_S: Final = 5.0


class Lifeline:
    """Made in the event loop that awaits `lost`; the others may be called from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ends: asyncio.Queue[int] = asyncio.Queue()
        self._kept: list[socket.socket] = []

    async def lost(self) -> int:
        """Wait until a connection ends: whose it was; 0 on every rank but rank 0."""
        return await self._ends.get()

    def serve(self, store: Store, host: str, world: int) -> None:
        """Rank 0: be there for the others, who learn the port from `store`."""
        if world > 1:
            server = socket.create_server((host, 0), backlog=world)
            self._kept.append(server)
            store.set(_KEY, str(server.getsockname()[1]))
            threading.Thread(target=self._accept, args=(server,), name="lifelines", daemon=True).start()

    def hold(self, store: Store, host: str, rank: int) -> None:
        """Another rank: hold on to rank 0. OSError: it is not there. RuntimeError: the store does not answer."""
        address = (host, int(store.get(_KEY)))
        connection = socket.create_connection(address, timeout=_CONNECT_S)
        connection.sendall(rank.to_bytes(_RANK_BYTES, "big"))
        connection.settimeout(None)
        self._kept.append(connection)
        threading.Thread(target=self._await_end, args=(connection, 0), name="lifeline", daemon=True).start()

    def release(self) -> None:
        """Let go of rank 0 again: it is one that had seen this rank before, and will end of that."""
        kept, self._kept = self._kept, []
        for connection in kept:
            # A close alone would leave the other thread in its recv.
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _accept(self, server: socket.socket) -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            self._kept.append(connection)
            threading.Thread(target=self._await_end, args=(connection, None), name="lifeline", daemon=True).start()

    def _await_end(self, connection: socket.socket, rank: int | None) -> None:
        """Nothing is ever said on it but the rank at its beginning."""
        try:
            if rank is None:
                said = connection.recv(_RANK_BYTES, socket.MSG_WAITALL)
                if len(said) < _RANK_BYTES:
                    return
                rank = int.from_bytes(said, "big")
            connection.recv(1)
        except OSError:
            pass
        if rank is not None and connection in self._kept and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._ends.put_nowait, rank)
