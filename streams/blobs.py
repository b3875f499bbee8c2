"""The claim-check store: heavy bytes beside the log, named by content, verified on every read.

Any fsspec location works (`file://`, `s3://` …). A blob is complete before its reference is written anywhere: locally
it is written to a temporary name, fsynced and renamed; object stores make a finished upload visible at once.
"""

import errno
import hashlib
import os
import time
from pathlib import Path
from typing import Any, Final

import fsspec

from schemas import BlobRef
from streams.errors import BlobError, ConfigurationError
from streams.faults import reach

_DIGEST_BYTES: Final = 32
_CHUNK_BYTES: Final = 1 << 20
_NO_PLACE: Final = frozenset({errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL})
"""What a reference is to blame for, and not the store."""


def digest_of(data: bytes | memoryview) -> str:
    """blake2b-256 in hexadecimal."""
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).hexdigest()


class BlobStore:
    """Blobs below one root URI. Synchronous: call it through `asyncio.to_thread`.

    Raises BlobError for a missing or wrong blob, OSError where the store itself fails (a full disk).
    """

    def __init__(self, root: str) -> None:
        try:
            filesystem, path = fsspec.core.url_to_fs(root)
        except (ImportError, ValueError) as error:
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
        digest = digest_of(data)
        path = f"{self._path}/{name}.{digest[:16]}"
        if self._local:
            _write_durably(Path(path), data)
        else:
            self._fs.pipe_file(path, bytes(data))
        return BlobRef(
            uri=self._fs.unstrip_protocol(path),
            size=len(data),
            digest=digest,
            codec="zstd" if codec == "zstd" else "none",
        )

    def put_file(self, name: str, source: Path) -> BlobRef:
        """Store the file `source`, read once in chunks."""
        hasher = hashlib.blake2b(digest_size=_DIGEST_BYTES)
        with source.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                hasher.update(chunk)
        digest = hasher.hexdigest()
        path = f"{self._path}/{name}.{digest[:16]}"
        if self._local:
            target = Path(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
            try:
                with source.open("rb") as file, temporary.open("wb") as out:
                    while chunk := file.read(_CHUNK_BYTES):
                        out.write(chunk)
                    _sync(out)
                reach("blobs.written")
                temporary.replace(target)
            except OSError:
                temporary.unlink(missing_ok=True)
                raise
            _sync_directory(target.parent)
        else:
            self._fs.put_file(str(source), path)
        return BlobRef(uri=self._fs.unstrip_protocol(path), size=source.stat().st_size, digest=digest)

    def get(self, ref: BlobRef) -> bytes:
        """The bytes behind `ref`, decompressed, after their size and digest were verified."""
        path = self._fs._strip_protocol(ref.uri)
        try:
            # Asked for first, so that a reference to a device or to something huge is never read.
            if self._local and (size := self._fs.size(path)) != ref.size:
                raise BlobError(f"blob {ref.uri} has {size} bytes and not {ref.size}")
            data: bytes = self._fs.cat_file(path)
        except FileNotFoundError as error:
            raise BlobError(f"blob {ref.uri} is not there") from error
        except (ValueError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in _NO_PLACE:
                raise
            raise BlobError(f"blob {ref.uri!r} is no place of the store: {error}") from error
        if len(data) != ref.size:
            raise BlobError(f"blob {ref.uri} has {len(data)} bytes and not {ref.size}")
        if digest_of(data) != ref.digest:
            raise BlobError(f"blob {ref.uri} differs from its digest {ref.digest[:16]}…")
        if ref.codec == "zstd":
            import zstandard

            try:
                return zstandard.ZstdDecompressor().decompress(data)
            except zstandard.ZstdError as error:
                raise BlobError(f"blob {ref.uri} does not decompress: {error}") from error
        return data

    def fetch_to(self, ref: BlobRef, target: Path) -> Path:
        """Write the verified bytes behind `ref` to `target` (whole or not at all) and return it."""
        _write_durably(target, self.get(ref), durable=False)
        return target

    def delete_older_than(self, age_s: float) -> int:
        """Delete blobs last modified more than `age_s` ago; the number deleted. Keep it above the topics' retention."""
        limit = time.time() - age_s
        deleted = 0
        for path, info in self._fs.find(self._path, detail=True).items():
            modified = info.get("mtime") or info.get("LastModified")
            if modified is not None and float(getattr(modified, "timestamp", lambda m=modified: m)()) < limit:
                self._fs.rm_file(path)
                deleted += 1
        return deleted


def _write_durably(target: Path, data: bytes | memoryview, durable: bool = True) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as out:
            out.write(data)
            if durable:
                _sync(out)
        reach("blobs.written")
        temporary.replace(target)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        _sync_directory(target.parent)


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
