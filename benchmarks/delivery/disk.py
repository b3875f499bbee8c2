"""The blob store alone beside plain files: bodies of 16 MB written durably and read verified.

A disk's speed changes from second to second here, so both sides take turns, a few bodies each, and the medians of the
turns are compared. Cold: the kernel was told to drop the file from its cache before. Cached: it was read just before.
"""

import os
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

from schemas import BlobRef
from streams.blobs.store import BlobStore

_BYTES: Final = 16 << 20
_TURNS: Final = 9
_BODIES: Final = 6
AT_ONCE: Final = 2
"""As many as a producer writes and a learner reads at once."""


class Compared(NamedTuple):
    """MB/s, medians over the turns, of the store and of plain files."""

    store: float
    plain: float

    def __str__(self) -> str:
        return f"{self.store:.0f} MB/s, {self.store / self.plain:.0%} of plain files ({self.plain:.0f})"


def measure(directory: Path) -> dict[str, Compared]:
    """`written`, `read cold`, `read cached`."""
    body = os.urandom(_BYTES)
    plain, store = directory / "plain", BlobStore((directory / "blobs").as_uri())
    plain.mkdir(parents=True)
    rates: defaultdict[tuple[str, bool], list[float]] = defaultdict(list)
    for turn in range(_TURNS):
        names = [str(number) for number in range(_BODIES)]
        refs: dict[str, BlobRef] = {}

        def put(name: str, refs: dict[str, BlobRef] = refs, turn: int = turn) -> None:
            refs[name] = store.put(f"{turn}/{name}", body)

        def get(name: str, refs: dict[str, BlobRef] = refs) -> None:
            store.get(refs[name])

        rates["written", False].append(_rate(names, lambda name: _write(plain / name, body), 1))
        rates["written", True].append(_rate(names, put, AT_ONCE))
        paths = [plain / name for name in names] + [Path(ref.uri.removeprefix("file://")) for ref in refs.values()]
        for path in paths:
            forget(path)
        for state in ("read cold", "read cached"):
            rates[state, False].append(_rate(names, lambda name: (plain / name).read_bytes(), 1))
            rates[state, True].append(_rate(names, get, AT_ONCE))
        for path in paths:
            path.unlink()
    return {
        what: Compared(median(rates[what, True]), median(rates[what, False]))
        for what in ("written", "read cold", "read cached")
    }


def _rate(names: list[str], work: Callable[[str], object], at_once: int) -> float:
    started_s = time.monotonic()
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(work, names))
    return len(names) * _BYTES / 1e6 / (time.monotonic() - started_s)


def _write(path: Path, body: bytes) -> None:
    with path.open("wb") as file:
        file.write(body)
        os.fsync(file.fileno())


def forget(path: Path) -> None:
    """Have the kernel drop a synced file from the page cache, so that reading it is reading the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
