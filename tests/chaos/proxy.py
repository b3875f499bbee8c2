"""A TCP proxy between one service and the broker that can stall, reset, throttle and refuse.

    proxy = Proxy("127.0.0.1", 9092)
    port = await proxy.open()              # the service's bootstrap is 127.0.0.1:<port>
    proxy.stall(); proxy.go_on()           # bytes wait; nothing is lost
    proxy.reset()                          # every connection ends with a RST, new ones are taken
    proxy.refuse(); proxy.go_on()          # new connections end at once

Kafka's clients reconnect to whatever address the broker advertises, so the proxy puts its own port in the answers that
name brokers. Host and port stand there as a string and four bytes, whatever the version of the answer: the length of
the frame stays as it is.
"""

import asyncio
import contextlib
import socket
import struct
from typing import Final

_METADATA, _FIND_COORDINATOR, _DESCRIBE_CLUSTER = 3, 10, 60
_NAMING: Final = (_METADATA, _FIND_COORDINATOR, _DESCRIBE_CLUSTER)
_LENGTH: Final = struct.Struct(">i")
_REQUEST: Final = struct.Struct(">hhi")
_CORRELATION: Final = struct.Struct(">i")
_RESET: Final = struct.pack("ii", 1, 0)


class Proxy:
    """One listening port in front of the broker at `host`:`port`. All methods are called on its event loop."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._broker_port = host, port
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._refusing = False
        self._bytes_per_s: float | None = None
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0

    async def open(self) -> int:
        """Listen on a free port, which is returned."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self.port

    async def close(self) -> None:
        """End every connection and stop listening."""
        if self._server is not None:
            self._server.close()
        self.go_on()
        self.reset()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def stall(self) -> None:
        """Bytes wait in both directions until `go_on`."""
        self._flowing.clear()

    def throttle(self, bytes_per_s: float) -> None:
        """Each direction of each connection passes so many bytes a second, until `go_on`."""
        self._bytes_per_s = bytes_per_s

    def refuse(self) -> None:
        """Every connection is reset, and so is each new one, until `go_on`."""
        self._refusing = True
        self.reset()

    def go_on(self) -> None:
        """No faults from now on."""
        self._flowing.set()
        self._refusing = False
        self._bytes_per_s = None

    def reset(self) -> None:
        """End every connection with a RST in both directions."""
        for writer in list(self._writers):
            _abort(writer)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            _abort(writer)
            return
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection(self._host, self._broker_port)
        except OSError:
            _abort(writer)
            return
        self._writers |= {writer, up_writer}
        asked: dict[int, int] = {}
        pipes = [
            asyncio.ensure_future(self._pipe_requests(reader, up_writer, asked)),
            asyncio.ensure_future(self._pipe_answers(up_reader, writer, asked)),
        ]
        try:
            await asyncio.wait(pipes, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pipe in pipes:
                pipe.cancel()
            await asyncio.gather(*pipes, return_exceptions=True)
            for each in (writer, up_writer):
                self._writers.discard(each)
                each.close()
                with contextlib.suppress(OSError):
                    await each.wait_closed()

    async def _pipe_requests(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: dict[int, int]
    ) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                frame = await _frame(reader)
                key, _, correlation = _REQUEST.unpack_from(frame, _LENGTH.size)
                if key in _NAMING:
                    asked[correlation] = key
                await self._pass(frame, writer)

    async def _pipe_answers(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: dict[int, int]
    ) -> None:
        real = self._host.encode() + _LENGTH.pack(self._broker_port)
        ours = self._host.encode() + _LENGTH.pack(self.port)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                frame = await _frame(reader)
                (correlation,) = _CORRELATION.unpack_from(frame, _LENGTH.size)
                if asked.pop(correlation, None) is not None:
                    frame = frame.replace(real, ours)
                await self._pass(frame, writer)

    async def _pass(self, frame: bytes, writer: asyncio.StreamWriter) -> None:
        await self._flowing.wait()
        if self._bytes_per_s is not None:
            await asyncio.sleep(len(frame) / self._bytes_per_s)
        writer.write(frame)
        await writer.drain()


async def _frame(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(_LENGTH.size)
    return head + await reader.readexactly(_LENGTH.unpack(head)[0])


def _abort(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
