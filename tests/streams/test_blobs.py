"""Blobs are complete, verified, and never half there."""

from pathlib import Path

import msgspec
import pytest

from streams.blobs import BlobStore
from streams.errors import BlobError, ConfigurationError


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore((tmp_path / "blobs").as_uri())


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_what_is_put_is_got(store: BlobStore, codec: str) -> None:
    data = bytes(range(256)) * 300
    ref = store.put("routes/a.0.1", memoryview(data), codec)
    assert store.get(ref) == data
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


def test_another_filesystem_serves_as_well(tmp_path: Path) -> None:
    store = BlobStore("memory://eachprompt-test")
    ref = store.put("a/b", b"bytes")
    assert ref.uri.startswith("memory://")
    assert store.get(ref) == b"bytes"


def test_an_unknown_store_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="'nosuch://x' is no location"):
        BlobStore("nosuch://x")


def test_old_blobs_are_deleted_and_young_ones_kept(store: BlobStore) -> None:
    ref = store.put("a", b"x")
    assert store.delete_older_than(3600) == 0
    assert store.get(ref) == b"x"
    assert store.delete_older_than(-10) == 1
