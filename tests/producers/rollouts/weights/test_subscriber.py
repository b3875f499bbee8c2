"""Which publication is taken, how its files come to be, and that none is used before it is whole and verified."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from producers.rollouts.engine.errors import WeightsRefused
from producers.rollouts.weights.publications import Publications
from producers.rollouts.weights.store import WeightStore
from schemas import WeightsPublished
from streams.blobs.store import BlobStore
from streams.errors import BlobError
from streams.record import Record
from streams.weights import Held, read_file
from tests.builders import weights_published
from tests.streams.weights.history import History


def publication(version: int, base: int | None = None) -> WeightsPublished:
    return weights_published(
        version,
        kind="full" if base is None else "delta",
        time_s=float(version),
        digest=f"d{version}",
        base_version=base,
        base_digest=None if base is None else f"d{base}",
    )


def record(version: int) -> Record:
    return Record("weights", 0, version, str(version).encode(), b"", {}, float(version))


@given(st.lists(st.integers(0, 20)), st.integers(-1, 20), st.sets(st.integers(0, 20)))
def test_the_newest_usable_one_above_the_current_is_next(offered: list[int], current: int, broken: set[int]) -> None:
    publications = Publications()
    for version in offered:
        publications.offer(publication(version), record(version))
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


def test_what_a_chain_may_need_is_kept_and_the_rest_forgotten() -> None:
    publications = Publications()
    for version in range(1, 9):
        publications.offer(publication(version, None if version in (1, 4) else version - 1), record(version))
    assert publications.newest(6) is not None
    assert sorted(publications.usable()) == [4, 5, 6, 7, 8]


def test_an_anchor_of_a_version_that_was_given_up_makes_it_usable_again() -> None:
    publications = Publications()
    publications.offer(publication(4), record(4))
    publications.offer(publication(5, 4), record(5))
    publications.give_up(5)
    assert publications.newest(4) is None and sorted(publications.usable()) == [4]
    publications.offer(publication(5), record(6))
    found = publications.newest(4)
    assert found is not None and found[0].kind == "full"


@pytest.fixture
def history(tmp_path: Path) -> History:
    made = History(BlobStore((tmp_path / "blobs").as_uri()))
    made.train(range(1, 9), anchors=(1, 5))
    return made


@pytest.fixture
def store(history: History, tmp_path: Path) -> WeightStore:
    return WeightStore(history.blobs, tmp_path / "cache")


def check(held: Held, history: History, version: int) -> None:
    state = {name: tensor for file in held.files for name, tensor in read_file(file.path).items()}
    wanted = history.states[version]
    assert held.version == version and state.keys() == wanted.keys()
    assert all(np.array_equal(state[name].bits, wanted[name].bits) for name in wanted)


def test_version_after_version_with_one_copy_on_disk(history: History, store: WeightStore, tmp_path: Path) -> None:
    for version in (2, 3, 3, 5, 8, 7):
        check(store.bring(history.events[version], history.events), history, version)
        assert len(list((tmp_path / "cache").iterdir())) == 1
    store.clear()
    assert store.held is None and not (tmp_path / "cache").exists()


def test_the_same_version_again_costs_nothing(history: History, store: WeightStore) -> None:
    held = store.bring(history.events[6], history.events)
    assert store.bring(history.events[6], history.events) is held


def test_files_that_were_changed_underneath_are_made_anew_from_the_anchor(history: History, store: WeightStore) -> None:
    held = store.bring(history.events[6], history.events)
    path = held.files[0].path
    data = bytearray(path.read_bytes())
    data[-1] ^= 128
    path.write_bytes(bytes(data))
    check(store.bring(history.events[7], history.events), history, 7)


def test_a_delta_whose_base_is_not_to_be_had_is_refused_and_what_is_held_stays(
    history: History, store: WeightStore
) -> None:
    held = store.bring(history.events[2], history.events)
    usable = {version: event for version, event in history.events.items() if version not in (3, 5)}
    with pytest.raises(WeightsRefused, match="weights 7 are a delta, and its base 5 is neither held nor made"):
        store.bring(history.events[7], usable)
    assert store.held is held
    check(held, history, 2)


def test_a_corrupt_delta_is_distinguished_from_a_corrupt_anchor(
    history: History, store: WeightStore, tmp_path: Path
) -> None:
    held = store.bring(history.events[6], history.events)
    for file in history.events[7].files:
        Path(file.blob.uri.removeprefix("file://")).write_bytes(b"x" * file.blob.size)
    with pytest.raises(BlobError, match="differs"):
        store.bring(history.events[7], history.events)
    assert store.held is held
    check(held, history, 6)
    assert list((tmp_path / "cache").iterdir()) == [held.directory]
    # The learner's answer: the same version, in full.
    history.events[7] = history.full(7)
    check(store.bring(history.events[7], history.events), history, 7)
    # What the delta gave is what the anchor gives: the digest is the same.
    check(store.bring(history.events[8], history.events), history, 8)
