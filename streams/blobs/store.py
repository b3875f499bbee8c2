"""The claim-check store: heavy bytes beside the log, named by content, verified on every read.

Any fsspec location works (`file://`, `s3://` …). A blob is complete before its reference is written anywhere: locally
it is written to a temporary name, fsynced and renamed; object stores make a finished upload visible at once.

A body passes through this process once each way: its digest is computed while it is written, and piece by piece while
it is read, and neither holds up other threads.
"""

import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final

import fsspec
import numpy as np

from schemas import BlobRef
from streams.blobs.digests import Hasher, digest_of, short
from streams.errors import BlobError, ConfigurationError
from streams.faults import reach

_CHUNK_BYTES: Final = 1 << 20
_NO_PLACE: Final = frozenset({errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL})
"""Errors for which the reference is to blame, and not the store."""
_FORBIDDEN: Final = frozenset({errno.EACCES, errno.EPERM})
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class BlobStore:
    """Blobs below one root URI. Synchronous: call it through `asyncio.to_thread`.

    Raises BlobError for a missing or wrong blob, OSError where the store itself fails (a full disk).
    """

    def __init__(self, root: str) -> None:
        try:
            filesystem, path = fsspec.core.url_to_fs(root)
        except (ImportError, ValueError, OSError) as error:
            raise ConfigurationError(f"blob store {root!r} is no location that fsspec can open: {error}") from error
        self._fs: Any = filesystem
        self._path = str(path).rstrip("/")
        self._local = "file" in (
            filesystem.protocol if isinstance(filesystem.protocol, tuple) else (filesystem.protocol,)
        )

    def put(self, name: str, data: bytes | memoryview, codec: str = "none") -> BlobRef:
        """Store `data` under `name` (may contain `/`) and its digest; storing the same bytes again changes nothing."""
        if codec not in ("none", "zstd"):
            raise ValueError(f"blob codec {codec!r} is not one of none, zstd")
        if codec == "zstd":
            import zstandard

            data = zstandard.ZstdCompressor(level=1).compress(data)
        if self._local:
            digest = self._put_local(name, lambda out: _write_and_digest(out, data))
        else:
            digest = digest_of(data)
            self._fs.pipe_file(self._place(name, digest), bytes(data))
        return self._ref(name, digest, len(data), codec)

    def put_file(self, name: str, source: Path) -> BlobRef:
        """Store the file `source` in pieces; from a local store it is read once."""
        if self._local:
            digest = self._put_local(name, lambda out: _copy_and_digest(source, out))
        else:
            digest = _copy_and_digest(source, None)
            self._fs.put_file(str(source), self._place(name, digest))
        return self._ref(name, digest, source.stat().st_size, "none")

    def get(self, ref: BlobRef) -> memoryview:
        """The bytes behind `ref`, decompressed, after their size and digest were verified. Not to be written to."""
        with self._blamed(ref):
            data = _read(self._fs._strip_protocol(ref.uri), ref) if self._local else self._download(ref)
        if ref.codec == "none":
            return data
        import zstandard

        try:
            return memoryview(zstandard.ZstdDecompressor().decompress(data))
        except zstandard.ZstdError as error:
            raise BlobError(f"blob {ref.uri} does not decompress: {error}") from error

    def fetch_to(self, ref: BlobRef, target: Path) -> Path:
        """Write the verified bytes behind `ref` to `target` (whole or not at all) and return it."""
        target.parent.mkdir(parents=True, exist_ok=True)
        if self._local and ref.codec == "none":
            # In pieces: weights may be larger than memory.
            with _temporary(target) as (out, temporary), self._blamed(ref):
                for piece in _pieces(self._fs._strip_protocol(ref.uri), ref, np.empty(_CHUNK_BYTES, np.uint8).data):
                    out.write(piece)
                out.flush()
                temporary.replace(target)
            return target
        data = self.get(ref)
        with _temporary(target) as (out, temporary):
            out.write(data)
            out.flush()
            temporary.replace(target)
        return target

    def delete_older_than(
        self, age_s: float, may_go: Callable[[str], bool], stopping: Callable[[], bool] = lambda: False
    ) -> int:
        """Delete blobs last modified more than `age_s` ago of whose name, relative to the root, `may_go` says so.

        The number deleted; ends early once `stopping` says so. Keep `age_s` above the topics' retention. What a killed
        writer left behind is deleted like what it was to become.
        """
        limit = time.time() - age_s
        deleted = 0
        for path, info in self._fs.find(self._path, detail=True).items():
            if stopping():
                break
            modified = info.get("mtime") or info.get("LastModified")
            if modified is None or float(getattr(modified, "timestamp", lambda m=modified: m)()) >= limit:
                continue
            if may_go(str(path).removeprefix(f"{self._path}/")):
                with suppress(FileNotFoundError):
                    self._fs.rm_file(path)
                    deleted += 1
        return deleted

    def _place(self, name: str, digest: str) -> str:
        return f"{self._path}/{name}.{short(digest)}"

    def _ref(self, name: str, digest: str, size: int, codec: str) -> BlobRef:
        uri = self._fs.unstrip_protocol(self._place(name, digest))
        return BlobRef(uri=uri, size=size, digest=digest, codec="zstd" if codec == "zstd" else "none")

    def _put_local(self, name: str, write: Callable[[BinaryIO], str]) -> str:
        """Durable under its final name when this returns; `write` returns the digest of what it wrote."""
        directory = Path(f"{self._path}/{name}").parent
        directory.mkdir(parents=True, exist_ok=True)
        with _temporary(Path(f"{self._path}/{name}")) as (out, temporary):
            digest = write(out)
            reach("blobs.written")
            temporary.replace(self._place(name, digest))
        _sync_directory(directory)
        return digest

    def _download(self, ref: BlobRef) -> memoryview:
        data = memoryview(self._fs.cat_file(self._fs._strip_protocol(ref.uri)))
        if len(data) != ref.size:
            raise BlobError(f"blob {ref.uri} has {len(data)} bytes and not {ref.size}")
        if digest_of(data, ref.digest) != ref.digest:
            raise _wrong_digest(ref)
        return data

    @contextmanager
    def _blamed(self, ref: BlobRef) -> Iterator[None]:
        """BlobError for what is wrong with the reference or what it names; the store's own failures stay OSError."""
        try:
            yield
        except FileNotFoundError as error:
            raise BlobError(f"blob {ref.uri} is not there") from error
        except (ValueError, OSError) as error:
            if isinstance(error, OSError) and not self._is_at_fault(ref, error):
                raise
            raise BlobError(f"blob {ref.uri!r} is no place of the store: {error}") from error

    def _is_at_fault(self, ref: BlobRef, error: OSError) -> bool:
        """Whether the reference is, since every other one can be read: a reader that died of it would do so again."""
        place = os.path.normpath(self._fs._strip_protocol(ref.uri))
        if not place.startswith(f"{self._path}/"):
            return error.errno not in _NO_ROOM  # which is the target's, and not that of a place outside of the store
        if error.errno in _FORBIDDEN:
            return self._local and os.access(self._path, os.R_OK | os.X_OK)
        return error.errno in _NO_PLACE


def _read(path: str, ref: BlobRef) -> memoryview:
    # Not a bytearray: filling that with zeros keeps other threads, the event loop's too, from running.
    data = np.empty(_checked_size(path, ref), np.uint8).data
    for _ in _pieces(path, ref, data):
        pass
    return data.toreadonly()


def _checked_size(path: str, ref: BlobRef) -> int:
    # Asked for first, so that a reference to a device or to something huge is never read.
    found = Path(path).stat()
    if not stat.S_ISREG(found.st_mode) or found.st_size != ref.size:
        raise BlobError(f"blob {ref.uri} has {found.st_size} bytes and not {ref.size}")
    return found.st_size


def _pieces(path: str, ref: BlobRef, into: memoryview) -> Iterator[memoryview]:
    """What the file at `path` holds, read into `into`, from its start again when it is full. BlobError at the end where
    it was not what `ref` says."""
    hasher, left, at = Hasher(ref.digest), _checked_size(path, ref), 0
    with Path(path).open("rb", buffering=0) as file:
        # The kernel reads ahead twice as far, and so from the disk while the digest is computed.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while left:
            if at == len(into):
                at = 0
            piece = into[at : at + min(_CHUNK_BYTES, left)]
            size = file.readinto(piece)
            if not size:
                raise BlobError(f"blob {ref.uri} has {ref.size - left} bytes and not {ref.size}")
            hasher.update(piece[:size])
            yield piece[:size]
            at += size
            left -= size
    if hasher.digest() != ref.digest:
        raise _wrong_digest(ref)


def _wrong_digest(ref: BlobRef) -> BlobError:
    return BlobError(f"blob {ref.uri} differs from its digest {short(ref.digest)}…")


def _write_and_digest(out: BinaryIO, data: bytes | memoryview) -> str:
    """Synced; the digest of a large body is computed while the disk takes it."""
    if len(data) < _CHUNK_BYTES:
        out.write(data)
        _sync(out)
        return digest_of(data)
    with ThreadPoolExecutor(1, thread_name_prefix="digest") as beside:
        digest: Future[str] = beside.submit(digest_of, data)
        out.write(data)
        _sync(out)
        return digest.result()


def _copy_and_digest(source: Path, out: BinaryIO | None) -> str:
    hasher, buffer = Hasher(), np.empty(_CHUNK_BYTES, np.uint8).data
    with source.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            hasher.update(buffer[:size])
            if out is not None:
                out.write(buffer[:size])
    if out is not None:
        _sync(out)
    return hasher.digest()


@contextmanager
def _temporary(target: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A file beside `target`, to be renamed; whatever goes wrong, it is gone afterwards."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with temporary.open("wb") as out:
            yield out, temporary
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
