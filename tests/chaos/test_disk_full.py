"""A full disk: what cannot be written whole is not there, and what was there stays."""

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from streams.blobs import BlobStore
from tests.chaos.disk import SmallDisk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    disk = SmallDisk(tmp_path / "disk", size_mib=2)
    disk.open()
    if not disk.mounted:
        pytest.skip("no tmpfs can be mounted here")
    yield disk
    disk.close()


@pytest.mark.parametrize("from_file", [False, True])
def test_a_blob_that_does_not_fit_is_not_there_and_can_be_stored_later(
    disk: SmallDisk, tmp_path: Path, from_file: bool
) -> None:
    store = BlobStore((disk.path / "blobs").as_uri())
    kept = store.put("kept", b"k" * 1000)
    data = bytes(range(256)) * 4000
    source = tmp_path / "source"
    source.write_bytes(data)
    disk.fill()
    with pytest.raises(OSError) as caught:
        store.put_file("big", source) if from_file else store.put("big", data)
    assert caught.value.errno == errno.ENOSPC
    assert [path.name for path in (disk.path / "blobs").iterdir()] == [Path(kept.uri).name], "nothing half-written"
    disk.free()
    stored = store.put_file("big", source) if from_file else store.put("big", data)
    assert store.get(stored) == data
    assert store.get(kept) == b"k" * 1000
