"""One process of the verifier pool: `python -m consumers.rewards.pool_process PARENT_PID`.

Reads requests from stdin and writes replies to stdout, each a MessagePack value after its length as 4 little-endian
bytes. It ends with its parent, or at the end of stdin.
"""

import ctypes
import os
import signal
import struct
import sys
from typing import Any, BinaryIO, Final, Literal

import msgspec

from consumers.rewards.verifiers import Sample, VerifierError, load

_PR_SET_PDEATHSIG: Final = 1
_LENGTH: Final = struct.Struct("<I")


class Request(msgspec.Struct, frozen=True):
    """One sample to be verified; without a text: the verifier is to be imported."""

    verifier: str
    text: str | None = None
    finish_reason: Literal["stop", "length"] = "stop"
    reference: str | dict[str, Any] = ""


class Reply(msgspec.Struct, frozen=True):
    """The verdict, 0..1, or why there is none."""

    value: float = 0.0
    error: str | None = None


def verify(request: Request) -> Reply:
    """What the verifier says. Whatever a verifier's package raises becomes an error of this one sample."""
    try:
        verifier = load(request.verifier)
        if request.text is None:
            verifier.warm()
            return Reply()
        return Reply(value=verifier.check(Sample(request.text, request.finish_reason, request.reference)))
    except VerifierError as error:
        return Reply(error=str(error))
    except Exception as error:  # the boundary to third-party scorers, which raise whatever they like at odd answers
        return Reply(error=f"verifier {request.verifier} failed: {type(error).__name__}: {error}")


def _serve(requests: BinaryIO, replies: BinaryIO) -> None:
    decoder = msgspec.msgpack.Decoder(Request)
    while len(head := requests.read(_LENGTH.size)) == _LENGTH.size:
        _write(replies, verify(decoder.decode(requests.read(_LENGTH.unpack(head)[0]))))


def _write(stream: BinaryIO, reply: Reply) -> None:
    data = msgspec.msgpack.encode(reply)
    stream.write(_LENGTH.pack(len(data)) + data)
    stream.flush()


def main(arguments: list[str]) -> None:
    """Serve until the parent is gone."""
    parent = int(arguments[0])
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    replies = os.fdopen(os.dup(1), "wb")
    # What a verifier prints must not get between the replies.
    os.dup2(2, 1)
    _serve(sys.stdin.buffer, replies)


if __name__ == "__main__":
    main(sys.argv[1:])
