"""Which publication is taken, and that none is taken before it is whole and verified."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producers.rollouts.publications import Publications
from producers.rollouts.weights import fetch
from schemas import WeightFile, WeightsPublished
from streams.blobs import BlobStore
from streams.errors import BlobError
from streams.record import Record


def publication(version: int, files: tuple[WeightFile, ...] = (), kind: str = "full") -> WeightsPublished:
    return WeightsPublished(
        version=version,
        kind=kind,  # type: ignore[arg-type]
        precision="bf16",
        files=files,
        tensors=len(files),
        parent_step=version,
        time_s=float(version),
    )


def record(version: int) -> Record:
    return Record("weights", 0, version, str(version).encode(), b"", {}, float(version))


@given(st.lists(st.integers(0, 20)), st.integers(-1, 20), st.sets(st.integers(0, 20)))
def test_the_newest_usable_one_above_the_current_is_next(offered: list[int], current: int, broken: set[int]) -> None:
    publications = Publications()
    for version in offered:
        assert publications.offer(publication(version), record(version))
    tried = []
    while (found := publications.newest(current)) is not None:
        tried.append(found[0].version)
        if found[0].version in broken:
            publications.give_up(found[0].version)
        else:
            current = found[0].version
            break
    assert tried == sorted(set(tried), reverse=True)
    assert not tried or tried[0] == max(offered)
    assert publications.newest(current) is None


def test_a_version_published_twice_is_taken_once_and_again_by_a_new_engine() -> None:
    publications = Publications()
    for version in (1, 2, 3):
        publications.offer(publication(version), record(version))
    assert publications.newest(0) is not None and publications.newest(3) is None
    # The learner went on from an older checkpoint.
    for version in (2, 3):
        publications.offer(publication(version), record(version + 10))
    assert publications.newest(3) is None
    found = publications.newest(0)
    assert found is not None and found[0].version == 3, "an engine that was started again begins at version 0"


def test_a_delta_is_not_taken() -> None:
    publications = Publications()
    assert not publications.offer(publication(3, kind="delta"), record(3))
    assert publications.newest(0) is None


def test_files_are_fetched_whole_under_harmless_names(tmp_path: Path) -> None:
    blobs = BlobStore((tmp_path / "blobs").as_uri())
    names = ["model.safetensors", "../../escape.safetensors", "model.safetensors"]
    stored = tuple(WeightFile(name=name, blob=blobs.put(f"w/{i}", bytes([i]) * 9)) for i, name in enumerate(names))
    files = fetch(blobs, publication(1, stored), tmp_path / "cache")
    assert [file.path.read_bytes() for file in files] == [bytes([i]) * 9 for i in range(3)]
    assert {file.path.parent for file in files} == {tmp_path / "cache"}
    assert [file.digest for file in files] == [file.blob.digest for file in stored]


def test_a_compressed_file_arrives_decompressed_and_carries_no_digest_of_its_own(tmp_path: Path) -> None:
    blobs = BlobStore((tmp_path / "blobs").as_uri())
    stored = WeightFile(name="m", blob=blobs.put("w", b"abc" * 100, codec="zstd"))
    (file,) = fetch(blobs, publication(1, (stored,)), tmp_path / "cache")
    assert file.path.read_bytes() == b"abc" * 100 and file.digest is None


@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped"])
def test_a_damaged_blob_is_refused(tmp_path: Path, damage: str) -> None:
    blobs = BlobStore((tmp_path / "blobs").as_uri())
    stored = WeightFile(name="m", blob=blobs.put("w", b"x" * 1000))
    (path,) = (tmp_path / "blobs").glob("w.*")
    match damage:
        case "missing":
            path.unlink()
        case "truncated":
            path.write_bytes(b"x" * 999)
        case "flipped":
            path.write_bytes(b"x" * 999 + b"y")
    with pytest.raises(BlobError):
        fetch(blobs, publication(1, (stored,)), tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*"))
