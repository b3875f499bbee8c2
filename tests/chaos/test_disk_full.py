"""A full disk: what cannot be written whole is not there, and what was there stays."""

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from learner.checkpoint.manager import CheckpointManager
from learner.checkpoint.manifest import Position
from learner.checkpoint.retention import Retention
from learner.errors import CheckpointError
from learner.ranks.group import join_group, leave_group
from learner.ranks.lifeline import rendezvous
from streams.blobs.store import BlobStore
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
    assert bytes(store.get(stored)) == data
    assert bytes(store.get(kept)) == b"k" * 1000


@pytest.fixture
def checkpoints(disk: SmallDisk, tmp_path: Path) -> Iterator[CheckpointManager]:
    ranks = join_group(rendezvous(0, 1, tmp_path / "meeting", 60.0), 60.0)
    yield CheckpointManager(disk.path / "checkpoints", "m", Retention(2), ranks)
    leave_group()


# torch's own, of one process group for each kind of device.
@pytest.mark.filterwarnings("ignore::UserWarning:torch")
def test_a_checkpoint_that_does_not_fit_is_none_and_the_one_before_stays(
    disk: SmallDisk, checkpoints: CheckpointManager
) -> None:
    def save(step: int) -> None:
        checkpoints.save(Position(step, step, step, step), checkpoints.stage({"w": torch.full((50_000,), float(step))}))

    save(1)
    disk.fill()
    with pytest.raises(CheckpointError, match=r"was not written \(0 MiB free there\)"):
        save(2)
    found = checkpoints.newest()
    assert found is not None
    assert found[0].name == "step-1"
    disk.free()
    save(2)
    path, manifest = checkpoints.newest() or pytest.fail("no checkpoint")
    filled = torch.zeros(50_000)
    checkpoints.load(path, manifest, {"w": filled})
    assert manifest.position == Position(2, 2, 2, 2)
    assert bool((filled == 2.0).all())
    assert sorted(each.name for each in (disk.path / "checkpoints").iterdir()) == ["step-1", "step-2"]
