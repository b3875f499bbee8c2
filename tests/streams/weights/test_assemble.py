"""Any reader, from any start, ends with the bits that were published, or with one sentence and nothing left behind."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from schemas import WeightFile, WeightsPublished
from streams.blobs.store import BlobStore
from streams.errors import BlobError
from streams.weights import Held, WeightsError, apply_deltas, chain_to, fetch_anchor, read_file
from streams.weights.assemble import file_digest
from tests.builders import weights_published
from tests.streams.weights.history import History, State


def held_state(held: Held) -> State:
    return {name: tensor for file in held.files for name, tensor in read_file(file.path).items()}


def check(held: Held, history: History, version: int) -> None:
    state, wanted = held_state(held), history.states[version]
    assert held.version == version and held.digest == history.events[version].digest
    assert state.keys() == wanted.keys()
    assert all(np.array_equal(state[name].bits, wanted[name].bits) for name in wanted)
    assert all(file.digest == file_digest(file.path) for file in held.files)


def make(history: History, version: int, directory: Path, held: Held | None = None) -> Held:
    chain = chain_to(version, history.events, None if held is None else (held.version, held.digest))
    if chain and chain[0].kind == "full":
        held, chain = fetch_anchor(history.blobs, chain[0], directory / f"a{version}"), chain[1:]
    assert held is not None
    return apply_deltas(history.blobs, held, chain, directory / f"d{version}") if chain else held


@pytest.mark.parametrize("version", [1, 2, 5, 8, 12])
def test_a_late_joiner_takes_the_newest_anchor_and_the_deltas_after_it(
    history: History, tmp_path: Path, version: int
) -> None:
    chain = chain_to(version, history.events)
    assert [event.version for event in chain] == list(range((version - 1) // 4 * 4 + 1, version + 1))
    check(make(history, version, tmp_path), history, version)


def test_who_follows_takes_the_deltas_alone_and_one_who_fell_behind_the_shorter_way(
    history: History, tmp_path: Path
) -> None:
    held = make(history, 2, tmp_path)
    assert [event.version for event in chain_to(4, history.events, (2, held.digest))] == [3, 4]
    held = make(history, 4, tmp_path, held)
    check(held, history, 4)
    assert chain_to(4, history.events, (4, held.digest)) == []
    assert [event.version for event in chain_to(7, history.events, (4, held.digest))] == [5, 6, 7]
    check(make(history, 7, tmp_path, held), history, 7)


def test_a_version_number_alone_is_no_base(history: History) -> None:
    assert [event.version for event in chain_to(7, history.events, (6, "another"))] == [5, 6, 7]
    assert [event.version for event in chain_to(7, history.events, (6, None))] == [5, 6, 7]
    # Published again after a resumption, with other contents: what was known of the first does not hold for these.
    history.states[6] = history.states[3]
    history.events[6] = history.full(6)
    with pytest.raises(KeyError, match="6"):
        chain_to(7, history.events)


def test_a_base_that_is_gone_is_named(history: History) -> None:
    del history.events[6]
    with pytest.raises(KeyError, match="6"):
        chain_to(8, history.events)
    assert chain_to(8, history.events, (7, history.events[7].digest))


def test_a_wrong_base_is_refused_and_leaves_nothing(history: History, tmp_path: Path) -> None:
    held = make(history, 2, tmp_path)
    with pytest.raises(WeightsError, match=r"weights 4 are a delta on weights 3 .* and what is held is 2"):
        apply_deltas(history.blobs, held, [history.events[4]], tmp_path / "out")
    other = Held(3, "0" * 64, held.directory, held.files)
    with pytest.raises(WeightsError, match=r"weights 4 are a delta on weights 3 .* what is held is 3"):
        apply_deltas(history.blobs, other, [history.events[4]], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    check(held, history, 2)


def test_tensors_that_are_not_the_announced_ones_are_refused(history: History, tmp_path: Path) -> None:
    """The held files were changed behind the reader's back: in a tensor the delta names, and in one it does not."""
    held = make(history, 2, tmp_path)
    for name, sentence in (("layer.0.weight", "'layer.0.weight' of weights 3"), ("layer.3.weight", "does not name")):
        state = dict(history.states[2])
        assert name != "layer.3.weight" or history.events[3].version % 4 == 3
        for file in held.files:
            if name in (tensors := read_file(file.path)):
                data = bytearray(file.path.read_bytes())
                position = data.find(bytes(tensors[name].bits[200:240].tobytes()))
                # Every element, so that some are hit that the delta leaves alone.
                for offset in range(0, 80, 2):
                    data[position + offset] ^= 64
                whole = file.path.read_bytes()
                file.path.write_bytes(bytes(data))
                with pytest.raises(WeightsError, match=sentence):
                    apply_deltas(history.blobs, held, [history.events[3]], tmp_path / "out")
                file.path.write_bytes(whole)
        assert state and not (tmp_path / "out").exists()


def test_a_delta_file_of_another_version_is_refused(history: History, tmp_path: Path) -> None:
    held = make(history, 2, tmp_path)
    wrong = msgspec.structs.replace(history.events[3], files=history.events[4].files)
    with pytest.raises(WeightsError, match="of weights 3 is of 4 on 3"):
        apply_deltas(history.blobs, held, [wrong], tmp_path / "out")


def published(files: tuple[WeightFile, ...]) -> WeightsPublished:
    return weights_published(1, files=files, tensors=1)


def test_files_are_fetched_whole_under_harmless_names(tmp_path: Path) -> None:
    blobs = BlobStore((tmp_path / "blobs").as_uri())
    names = ["model.safetensors", "../../escape.safetensors", "model.safetensors"]
    stored = tuple(WeightFile(name=name, blob=blobs.put(f"w/{i}", bytes([i]) * 9)) for i, name in enumerate(names))
    held = fetch_anchor(blobs, published(stored), tmp_path / "cache")
    assert [file.path.read_bytes() for file in held.files] == [bytes([i]) * 9 for i in range(3)]
    assert {file.path.parent for file in held.files} == {tmp_path / "cache"}
    assert [file.digest for file in held.files] == [file.blob.digest for file in stored]


def test_a_compressed_file_arrives_decompressed_and_carries_no_digest_of_its_own(tmp_path: Path) -> None:
    blobs = BlobStore((tmp_path / "blobs").as_uri())
    stored = WeightFile(name="m", blob=blobs.put("w", b"abc" * 100, codec="zstd"))
    (file,) = fetch_anchor(blobs, published((stored,)), tmp_path / "cache").files
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
        fetch_anchor(blobs, published((stored,)), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
