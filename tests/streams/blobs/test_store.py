"""Blobs are complete, verified, and never half there."""

import errno
import hashlib
import os
from pathlib import Path
from typing import NoReturn

import msgspec
import pytest

from streams.blobs.store import BlobStore
from streams.errors import BlobError, ConfigurationError


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore((tmp_path / "blobs").as_uri())


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_what_is_put_is_got(store: BlobStore, codec: str) -> None:
    data = bytes(range(256)) * 300
    ref = store.put("routes/a.0.1", memoryview(data), codec)
    assert bytes(store.get(ref)) == data
    assert ref.codec == codec
    assert (ref.size < len(data)) == (codec == "zstd")


def test_a_file_is_put_and_fetched_whole(store: BlobStore, tmp_path: Path) -> None:
    source = tmp_path / "weights.bin"
    source.write_bytes(b"w" * 3_000_000)
    ref = store.put_file("weights/v1/model", source)
    assert store.fetch_to(ref, tmp_path / "copy" / "w").read_bytes() == source.read_bytes()


def test_wrong_bytes_are_refused(store: BlobStore, tmp_path: Path) -> None:
    ref = store.put("a", b"hello world")
    path = Path(ref.uri.removeprefix("file://"))
    path.write_bytes(b"hello wOrld")
    with pytest.raises(BlobError, match="differs from its digest"):
        store.get(ref)
    path.write_bytes(b"hello")
    with pytest.raises(BlobError, match="has 5 bytes and not 11"):
        store.get(ref)
    path.unlink()
    with pytest.raises(BlobError, match="is not there"):
        store.get(ref)
    with pytest.raises(BlobError, match="is not there"):
        store.fetch_to(msgspec.structs.replace(ref), tmp_path / "target")
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (3 << 20) + 7])
def test_a_body_of_any_size_comes_back(store: BlobStore, tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    ref = store.put("a", data)
    assert ref.digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert bytes(store.get(ref)) == data and store.get(ref).readonly
    assert store.fetch_to(ref, tmp_path / "copy").read_bytes() == data
    assert store.put_file("a", tmp_path / "copy") == ref
    assert [path.name for path in (tmp_path / "blobs").iterdir()] == [f"a.{ref.digest[7:23]}"]


@pytest.mark.parametrize("at", [0, 1 << 20, (2 << 20) + 4])
def test_one_flipped_bit_is_seen_wherever_it_is(store: BlobStore, tmp_path: Path, at: int) -> None:
    ref = store.put("a", bytes((2 << 20) + 5))
    with Path(ref.uri.removeprefix("file://")).open("r+b") as file:
        file.seek(at)
        file.write(b"\x01")
    with pytest.raises(BlobError, match="differs from its digest"):
        store.get(ref)
    with pytest.raises(BlobError, match="differs from its digest"):
        store.fetch_to(ref, tmp_path / "new" / "copy")
    assert list((tmp_path / "new").iterdir()) == [], "what does not verify is not left behind"


def test_an_earlier_reference_is_read_and_a_later_algorithm_is_named(store: BlobStore) -> None:
    ref = store.put("a", b"bytes")
    earlier = msgspec.structs.replace(ref, digest=hashlib.blake2b(b"bytes", digest_size=32).hexdigest())
    assert bytes(store.get(earlier)) == b"bytes"
    with pytest.raises(BlobError, match="digest 'sha9:ab' is not sha256"):
        store.get(msgspec.structs.replace(ref, digest="sha9:ab"))
    with pytest.raises(BlobError, match="differs from its digest"):
        store.get(msgspec.structs.replace(earlier, digest="0" * 64))


def test_a_reference_to_a_device_is_not_read(store: BlobStore) -> None:
    ref = msgspec.structs.replace(store.put("a", b""), uri="file:///dev/zero")
    with pytest.raises(BlobError, match="blob file:///dev/zero"):
        store.get(ref)


def test_another_filesystem_serves_as_well(tmp_path: Path) -> None:
    store = BlobStore("memory://eachprompt-test")
    ref = store.put("a/b", b"bytes")
    assert ref.uri.startswith("memory://")
    assert bytes(store.get(ref)) == b"bytes"


def test_an_unknown_store_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="'nosuch://x' is no location"):
        BlobStore("nosuch://x")


def test_old_blobs_are_deleted_and_young_ones_kept(store: BlobStore) -> None:
    ref, kept = store.put("routes/a", b"x"), store.put("weights/v1/a", b"x")
    assert store.delete_older_than(3600, lambda name: True) == 0
    assert bytes(store.get(ref)) == b"x"
    assert store.delete_older_than(-10, lambda name: True, stopping=lambda: True) == 0
    assert store.delete_older_than(-10, lambda name: name.startswith("routes/a.")) == 1
    assert bytes(store.get(kept)) == b"x"
    assert store.delete_older_than(-10, lambda name: True) == 1


def test_a_store_without_a_blob_has_nothing_to_delete(store: BlobStore) -> None:
    assert store.delete_older_than(-10, lambda name: True) == 0


def failing(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Files have a size and cannot be opened; root may open every file, so that modes cannot show it."""

    def refuse(*_: object, **__: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "open", refuse)


@pytest.mark.parametrize(("inside", "number"), [(True, errno.EACCES), (False, errno.EACCES), (False, errno.EIO)])
def test_what_only_this_reference_fails_with_is_its_own_fault(
    store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: bool, number: int
) -> None:
    ref = store.put("a", b"x")
    if not inside:
        (tmp_path / "outside").write_bytes(b"x")
        ref = msgspec.structs.replace(ref, uri=f"{ref.uri.rpartition('/')[0]}/../outside")
    failing(monkeypatch, number)
    with pytest.raises(BlobError, match="is no place of the store"):
        store.get(ref)


def test_what_the_store_fails_with_is_no_references_fault(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = store.put("a", b"x")
    failing(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        store.get(ref)
    failing(monkeypatch, errno.EACCES)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError):
        store.get(ref)
