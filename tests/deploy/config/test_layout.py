"""Places in a run directory, whatever it is called."""

from pathlib import Path

import pytest

from deploy.config.layout import RunDirectory
from streams.blobs.store import BlobStore


@pytest.mark.parametrize("name", ["run", "my run", "Läufe", "50% off", "a+b"])
def test_blobs_are_in_the_run_directory(tmp_path: Path, name: str) -> None:
    root = tmp_path / name
    store = BlobStore(RunDirectory(root).blob_uri)
    ref = store.put("routes/x", b"bytes")
    assert bytes(store.get(ref)) == b"bytes"
    assert [path.parent for path in root.rglob("*") if path.is_file()] == [root / "blobs" / "routes"]
    assert list(tmp_path.iterdir()) == [root], "nothing beside it"
