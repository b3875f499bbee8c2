"""Twelve versions on a blob store, with anchors at 1, 5 and 9."""

from pathlib import Path

import pytest

from streams.blobs.store import BlobStore
from tests.streams.weights.history import History


@pytest.fixture
def history(tmp_path: Path) -> History:
    made = History(BlobStore((tmp_path / "blobs").as_uri()))
    made.train(range(1, 13), anchors=(1, 5, 9))
    return made
