"""One process of the verifier pool: `python -m consumers.rewards.pool_process PARENT_PID`.

Reads requests from stdin and writes replies to stdout, each a MessagePack value after its length as 4 little-endian
bytes. It ends with its parent, or at the end of stdin.

It imports verifiers and judges nothing itself: a forked child does. A sample that does not end costs its deadline and a
fork of milliseconds, whereas a new process would import its verifiers again for seconds.
"""

import contextlib
import ctypes
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any, BinaryIO, Final

import msgspec

from consumers.rewards.verifiers import Sample, VerifierError, load

_PR_SET_PDEATHSIG: Final = 1
_LENGTH: Final = struct.Struct("<I")


class Request(msgspec.Struct, frozen=True):
    """One sample to be verified within `timeout_s`; without a text: the verifier is to be imported."""

    verifier: str
    text: str | None = None
    reference: str | dict[str, Any] = ""
    timeout_s: float = 0.0


class Reply(msgspec.Struct, frozen=True):
    """The verdict, 0..1, or why there is none."""

    value: float = 0.0
    error: str | None = None


_request_decoder: Final = msgspec.msgpack.Decoder(Request)
_reply_decoder: Final = msgspec.msgpack.Decoder(Reply)


def verify(request: Request) -> Reply:
    """The verifier's result. Whatever a verifier's package raises becomes an error of this one sample."""
    try:
        verifier = load(request.verifier)
        if request.text is None:
            verifier.warm()
            return Reply()
        return Reply(value=verifier.check(Sample(request.text, request.reference)))
    except VerifierError as error:
        return Reply(error=str(error))
    except Exception as error:  # the boundary to third-party scorers, which raise whatever they like at odd answers
        return Reply(error=f"verifier {request.verifier} failed: {type(error).__name__}: {error}")


class Judge:
    """The child that judges: forked when first needed, and again after it was killed or died."""

    def __init__(self) -> None:
        self._pid: int | None = None
        self._pipe: socket.socket | None = None

    def reply(self, request: Request) -> Reply:
        """The child's verdict; a child that died meanwhile (as when memory is short) is replaced once."""
        for _ in range(2):
            reply, end = self._try(request)
            if reply is not None:
                return reply
        return Reply(error=f"the process of verifier {request.verifier} died twice: {end}")

    def retire(self) -> None:
        """End the child; the next sample gets a new one, which has what was imported since."""
        if self._pid is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        self._reap()

    def _try(self, request: Request) -> tuple[Reply | None, str]:
        if self._pid is None:
            self._fork()
        pipe = self._pipe
        assert pipe is not None
        try:
            pipe.sendall(_framed(msgspec.msgpack.encode(request)))
            if not select.select([pipe], [], [], request.timeout_s)[0]:
                self.retire()
                return Reply(error=f"verifier {request.verifier} passed its deadline of {request.timeout_s:g} s"), ""
            data = _received(pipe.recv)
        except OSError:
            data = None
        if data is None:
            return None, self._reap()
        return _reply_decoder.decode(data), ""

    def _fork(self) -> None:
        ours, theirs = socket.socketpair()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            ours.close()
            _judge(theirs, parent)
        theirs.close()
        self._pid, self._pipe = pid, ours

    def _reap(self) -> str:
        assert self._pid is not None
        assert self._pipe is not None
        _, status = os.waitpid(self._pid, 0)
        self._pipe.close()
        self._pid = self._pipe = None
        code = os.waitstatus_to_exitcode(status)
        return f"it was killed by signal {-code}" if code < 0 else f"it ended with exit code {code}"


def _judge(pipe: socket.socket, parent: int) -> None:
    """The child's main loop. Never returns: the frames above it on the stack are its parent's."""
    code = 1
    try:
        _die_with(parent)
        while (data := _received(pipe.recv)) is not None:
            pipe.sendall(_framed(msgspec.msgpack.encode(verify(_request_decoder.decode(data)))))
        code = 0
    finally:
        os._exit(code)


def _serve(requests: BinaryIO, replies: BinaryIO) -> None:
    judge = Judge()
    while (data := _received(requests.read)) is not None:
        request = _request_decoder.decode(data)
        if request.text is None:
            reply = verify(request)
            judge.retire()
        else:
            reply = judge.reply(request)
        replies.write(_framed(msgspec.msgpack.encode(reply)))
        replies.flush()
    judge.retire()


def _framed(data: bytes) -> bytes:
    return _LENGTH.pack(len(data)) + data


def _received(read: Callable[[int], bytes]) -> bytes | None:
    """One value; None at the end of the stream."""
    head = _exactly(read, _LENGTH.size)
    return None if head is None else _exactly(read, _LENGTH.unpack(head)[0])


def _exactly(read: Callable[[int], bytes], size: int) -> bytes | None:
    parts = b""
    while len(parts) < size:
        part = read(size - len(parts))
        if not part:
            return None
        parts += part
    return parts


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when `parent` ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def main(arguments: list[str]) -> None:
    """Serve until the parent is gone."""
    _die_with(int(arguments[0]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    replies = os.fdopen(os.dup(1), "wb")
    # Whatever a verifier prints must not be mixed with the replies.
    os.dup2(2, 1)
    _serve(sys.stdin.buffer, replies)


if __name__ == "__main__":
    main(sys.argv[1:])
