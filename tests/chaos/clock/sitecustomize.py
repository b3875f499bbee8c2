"""Python runs this at its start where this directory is on PYTHONPATH: the wall clock of a service can then jump.

EACHPROMPT_CLOCK names a file of eight bytes, a little-endian double: by how many seconds the clock is wrong. It is
mapped, so that a jump reaches a process that runs, and asking for the time stays cheap.
"""

import mmap
import os
import struct
import time

_OFFSET = struct.Struct("<d")


def _skew(path: str) -> None:
    with open(path, "rb") as file:  # noqa: PTH123 - pathlib is not to be imported at the start of every process
        offset = mmap.mmap(file.fileno(), _OFFSET.size, prot=mmap.PROT_READ)
    true_s, true_ns = time.time, time.time_ns

    def time_s() -> float:
        return true_s() + float(_OFFSET.unpack_from(offset)[0])

    def time_ns() -> int:
        return true_ns() + int(_OFFSET.unpack_from(offset)[0] * 1e9)

    time.time, time.time_ns = time_s, time_ns


if _path := os.environ.get("EACHPROMPT_CLOCK"):
    _skew(_path)
