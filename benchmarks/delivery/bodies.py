"""Routes of 16 MB by claim check: each written once (durably) and read once (verified), beside an event loop."""

import asyncio
import os
import time
from pathlib import Path
from typing import Final

import uvloop

from schemas import BlobRef
from streams.blobs import BlobStore

_BYTES: Final = 16 << 20
_COUNT: Final = 40


def measure(directory: Path) -> None:
    """Prints MB/s of writing and reading, beside plain files of the same size, and the longest block of the loop."""
    directory.mkdir(parents=True, exist_ok=True)
    body = os.urandom(_BYTES)
    raw_write, raw_read = _raw(directory / "raw", body)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        write, read, block_ms, idle_ms = runner.run(_claim_check(directory / "blobs", body))
    print(f"bodies of 16 MB: written {write:.0f} MB/s, {write / raw_write:.0%} of write + fsync ({raw_write:.0f})")
    print(f"  read and verified {read:.0f} MB/s, {read / raw_read:.0%} of plain reading from disk ({raw_read:.0f})")
    print(f"  longest block of the event loop {block_ms:.1f} ms; {idle_ms:.1f} ms with nothing to do, just before")


def _raw(directory: Path, body: bytes) -> tuple[float, float]:
    """MB/s of `dd conv=fsync`-like writing and of reading it back."""
    directory.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    for number in range(_COUNT):
        with (directory / f"{number}").open("wb") as file:
            file.write(body)
            os.fsync(file.fileno())
    written = time.monotonic()
    for number in range(_COUNT):
        _forget(directory / f"{number}")
    started_reading = time.monotonic()
    for number in range(_COUNT):
        (directory / f"{number}").read_bytes()
    read = time.monotonic()
    total = _COUNT * _BYTES / 1e6
    for number in range(_COUNT):
        (directory / f"{number}").unlink()
    return total / (written - started), total / (read - started_reading)


def _forget(path: Path) -> None:
    """Have the kernel drop a synced file from the page cache, so that reading it is reading the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


async def _claim_check(directory: Path, body: bytes) -> tuple[float, float, float, float]:
    """Two at a time, as a producer and a learner do; a task that wants to run every ms says how long it could not."""
    store, longest_s, slots = BlobStore(directory.as_uri()), 0.0, asyncio.Semaphore(2)

    async def watch() -> None:
        nonlocal longest_s
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.001)
            longest_s = max(longest_s, time.monotonic() - before - 0.001)

    async def put(number: int) -> BlobRef:
        async with slots:
            return await asyncio.to_thread(store.put, f"routes/{number}", body)

    async def get(ref: BlobRef) -> None:
        async with slots:
            await asyncio.to_thread(store.get, ref)

    watching = asyncio.create_task(watch())
    await asyncio.sleep(2.0)
    idle_s, longest_s = longest_s, 0.0
    started = time.monotonic()
    refs = await asyncio.gather(*(put(number) for number in range(_COUNT)))
    written = time.monotonic()
    for ref in refs:
        _forget(Path(ref.uri.removeprefix("file://")))
    started_reading = time.monotonic()
    await asyncio.gather(*(get(ref) for ref in refs))
    read = time.monotonic()
    watching.cancel()
    total = _COUNT * _BYTES / 1e6
    return total / (written - started), total / (read - started_reading), 1e3 * longest_s, 1e3 * idle_s
