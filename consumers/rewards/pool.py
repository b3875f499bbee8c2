"""A pool of processes for verifiers that take processor time, in which a stuck sample delays no other.

    async with VerifierPool(size=2, timeout_s=5) as pool:
        value = await pool.check("reasoning_gym", sample)      # VerifierError: no verdict, or the deadline passed

Each process has its own pipe and one sample at a time, which a child of it judges under the deadline: killing a stuck
one loses that sample alone (the standard library's ProcessPoolExecutor breaks as a whole) and nothing is imported
again. Processes are started when first needed, die with the service, and speak MessagePack: nothing is pickled.
"""

import asyncio
import contextlib
import os
import struct
import sys
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Final, Self

import msgspec

from consumers.rewards.pool_process import Reply, Request
from consumers.rewards.verifiers import Sample, VerifierError

_LOAD_S: Final = 120.0
_GRACE_S: Final = 10.0
"""The process enforces a sample's deadline itself; one that has not replied this long after it hangs."""

_MAX_REPLY_BYTES: Final = 1 << 20
_LENGTH: Final = struct.Struct("<I")
_reply_decoder: Final = msgspec.msgpack.Decoder(Reply)


class _Died(Exception):
    """A process ended in the middle of a sample."""


class _Process:
    """One running pool process and the verifiers it has imported."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._loaded: set[str] = set()
        self._asked = False

    @property
    def is_between_samples(self) -> bool:
        """Whether it waits for a request: every earlier one was replied to."""
        return not self._asked

    @classmethod
    async def start(cls) -> Self:
        """A new process, which imports nothing yet."""
        return cls(
            await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "consumers.rewards.pool_process", str(os.getpid())),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                # Ctrl-C at the terminal is for the service, which drains; when it ends, this process ends too.
                start_new_session=True,
            )
        )

    async def load(self, verifier: str) -> None:
        """Import a verifier, once; outside any sample's deadline. VerifierError, _Died."""
        if verifier in self._loaded:
            return
        try:
            async with asyncio.timeout(_LOAD_S):
                reply = await self.ask(Request(verifier))
        except TimeoutError:
            raise VerifierError(f"verifier {verifier} was not imported within {_LOAD_S:g} s") from None
        if reply.error is not None:
            raise VerifierError(reply.error)
        self._loaded.add(verifier)

    async def ask(self, request: Request) -> Reply:
        """The reply to one request. _Died when the process ended."""
        self._asked = True
        data = msgspec.msgpack.encode(request)
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(_LENGTH.pack(len(data)) + data)
            await self._process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            raise _Died(await self._end()) from None
        return await self._reply()

    async def _reply(self) -> Reply:
        assert self._process.stdout is not None
        try:
            (size,) = _LENGTH.unpack(await self._process.stdout.readexactly(_LENGTH.size))
            if size > _MAX_REPLY_BYTES:
                raise _Died(f"it replied with {size} bytes")
            reply = _reply_decoder.decode(await self._process.stdout.readexactly(size))
        except (asyncio.IncompleteReadError, ConnectionResetError):
            raise _Died(await self._end()) from None
        except msgspec.DecodeError as error:
            raise _Died(f"its reply is unreadable: {error}") from None
        self._asked = False
        return reply

    async def _end(self) -> str:
        code = await self._process.wait()
        return f"it was killed by signal {-code}" if code < 0 else f"it ended with exit code {code}"

    async def kill(self) -> None:
        """End it at once and reap it."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()


class VerifierPool:
    """Up to `size` processes, each with one sample in flight under a deadline of `timeout_s`. An async context."""

    def __init__(self, size: int, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._size = size
        self._slots = asyncio.Semaphore(size)
        self._idle: deque[_Process] = deque()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        while self._idle:
            await self._idle.pop().kill()

    async def warm(self, verifiers: Iterable[str]) -> None:
        """Start every process now and import `verifiers` there, so that no sample waits for it. VerifierError."""
        names = list(verifiers)
        await asyncio.gather(*(self._warm_one(names) for _ in range(self._size)))

    async def check(self, verifier: str, sample: Sample) -> float:
        """The verdict, 0..1. VerifierError: the verifier has none, failed, or passed its deadline.

        Waiting for a free process and its imports does not count towards the deadline. A sample whose process died
        (for example, killed for lack of memory) is tried in a second one.
        """
        reference = sample.reference if isinstance(sample.reference, str) else dict(sample.reference)
        request = Request(verifier, sample.text, reference, self._timeout_s)
        async with self._slots:
            try:
                reply = await self._ask(request)
            except _Died:
                try:
                    reply = await self._ask(request, fresh=True)
                except _Died as error:
                    raise VerifierError(f"the process of verifier {verifier} died twice: {error}") from None
        if reply.error is not None:
            raise VerifierError(reply.error)
        return reply.value

    async def _warm_one(self, verifiers: Sequence[str]) -> None:
        async with self._slots, self._process() as process:
            for verifier in verifiers:
                await process.load(verifier)

    async def _ask(self, request: Request, *, fresh: bool = False) -> Reply:
        async with self._process(fresh=fresh) as process:
            await process.load(request.verifier)
            try:
                async with asyncio.timeout(self._timeout_s + _GRACE_S):
                    return await process.ask(request)
            except TimeoutError:
                raise VerifierError(f"the process of verifier {request.verifier} does not answer") from None

    @asynccontextmanager
    async def _process(self, *, fresh: bool = False) -> AsyncIterator[_Process]:
        """An idle process, else a new one; idle again afterwards, unless it was interrupted with a sample in flight.

        `fresh` replaces an idle one first: what killed one idle process may have killed them all.
        """
        if fresh and self._idle:
            await self._idle.pop().kill()
        process = self._idle.pop() if self._idle and not fresh else await _Process.start()
        try:
            yield process
        finally:
            if process.is_between_samples:
                self._idle.append(process)
            else:
                await process.kill()
