"""The offset tracker against a reference of sets."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.stages.offset_metadata import decode, encode, gaps, mixed_bytes
from streams.stages.offsets import MAX_LISTED_SPAN, MAX_MIXED_BYTES, MAX_SPAN, METADATA_LIMIT_BYTES, OffsetTracker


def test_nothing_begun_commits_the_start() -> None:
    assert OffsetTracker(7).commit() == (7, "")


def test_the_lowest_unfinished_offset_is_committed_and_the_finished_above_it_remembered() -> None:
    tracker = OffsetTracker(0)
    for offset in range(5):
        tracker.begin(offset)
    for offset in (0, 2, 4):
        tracker.finish(offset)
    offset, metadata = tracker.commit()
    restored = OffsetTracker.restore(offset, metadata)
    assert offset == 1
    assert [restored.is_finished(o) for o in range(6)] == [True, False, True, False, True, False]


def test_offsets_that_never_come_hold_nothing_up() -> None:
    tracker = OffsetTracker(10)
    tracker.begin(12)
    tracker.begin(20)
    tracker.finish(12)
    assert tracker.commit()[0] == 20


def test_misuse_is_refused() -> None:
    tracker = OffsetTracker(3)
    tracker.begin(4)
    with pytest.raises(ValueError, match="begun after offset 4"):
        tracker.begin(4)
    with pytest.raises(ValueError, match="begun after offset 4"):
        tracker.begin(2)
    with pytest.raises(ValueError, match="offset 9 is finished but not open"):
        tracker.finish(9)
    with pytest.raises(ValueError, match="'junk' was not written by an offset tracker"):
        OffsetTracker.restore(0, "junk")
    with pytest.raises(ValueError, match="its last number is cut off"):
        OffsetTracker.restore(0, "u:gA==")
    with pytest.raises(ValueError, match="negative"):
        OffsetTracker(-1)


def test_a_finished_offset_is_not_begun_again_after_a_restore() -> None:
    tracker = OffsetTracker(0)
    for offset in range(3):
        tracker.begin(offset)
    tracker.finish(1)
    restored = OffsetTracker.restore(*tracker.commit())
    restored.begin(0)
    with pytest.raises(ValueError, match="offset 1 is already finished"):
        restored.begin(1)
    restored.begin(2)
    restored.finish(0)
    assert restored.commit()[0] == 2


def test_the_worst_pattern_at_the_widest_span_fits_the_commit_metadata() -> None:
    tracker = OffsetTracker(0)
    for offset in range(MAX_SPAN):
        tracker.begin(offset)
    for offset in range(1, MAX_SPAN, 2):
        tracker.finish(offset)
    assert tracker.span == MAX_SPAN
    assert len(tracker.commit()[1]) <= METADATA_LIMIT_BYTES


def test_one_unfinished_offset_does_not_hold_a_partition_up() -> None:
    tracker = OffsetTracker(0)
    tracker.begin(0)
    for offset in range(1, 300_000):
        tracker.begin(offset)
        tracker.finish(offset)
    assert not tracker.full
    low, metadata = tracker.commit()
    assert (low, len(metadata)) == (0, 10)
    restored = OffsetTracker.restore(low, metadata)
    assert not restored.is_finished(0) and restored.is_finished(1) and restored.is_finished(299_999)
    assert not restored.is_finished(300_000)
    tracker.begin(MAX_LISTED_SPAN)
    assert tracker.full, "a restart would read all of it again"


def test_a_full_tracker_fits_the_metadata_whatever_finishes_next() -> None:
    """Wide gaps cost most: it is full before the metadata is, and what was read ahead still fits."""
    tracker = OffsetTracker(0)
    offset = 0
    while not tracker.full:
        tracker.begin(offset)
        offset += 200 if tracker.unfinished % 2 else 1
    for ahead in range(offset, offset + 1_200):
        tracker.begin(ahead)
    tracker.finish(offset + 1_199)
    lengths = []
    for done in [open_ for open_ in range(offset) if not tracker.is_finished(open_)]:
        if done % 7 == 0:
            tracker.finish(done)
            lengths.append(len(tracker.commit()[1]))
    assert 4 / 3 * MAX_MIXED_BYTES < lengths[0] <= METADATA_LIMIT_BYTES
    assert lengths == sorted(lengths, reverse=True)


def test_what_was_read_ahead_counts_before_it_is_begun() -> None:
    """A straggler, a backlog of which nothing finishes, transaction markers, and a look before each poll of 500."""
    tracker, ahead = OffsetTracker(0), 0
    tracker.begin(0)
    tracker.advance(30_000)
    while not tracker.full_with(ahead):
        ahead += 500
    for offset in range(30_000, 30_000 + 2 * ahead, 2):
        tracker.begin(offset)
    tracker.begin(30_000 + 2 * ahead)
    tracker.finish(30_000 + 2 * ahead)
    assert MAX_MIXED_BYTES < len(tracker.commit()[1]) <= METADATA_LIMIT_BYTES


def test_stragglers_do_not_hold_up_a_partition_in_which_thousands_are_under_way() -> None:
    """Groups of 8 whose members come in any order, and one in a thousand whose last member does not come for long.

    Whoever is full reads no more, and so not what would end the groups that wait: that would be until their deadline.
    """
    draw, tracker = Random(1), OffsetTracker(0)
    groups: dict[int, list[int]] = {}
    waiting: list[int] = []
    for offset in range(45_000):
        while len(waiting) < 4096:
            group = len(groups)
            groups[group] = []
            waiting += [group] * (7 if group % 1000 == 0 else 8)
        tracker.begin(offset)
        group = waiting.pop(draw.randrange(len(waiting)))
        groups[group].append(offset)
        if len(groups[group]) == 8:
            for member in groups[group]:
                tracker.finish(member)
        if offset % 1000 == 0:
            assert not tracker.full_with(500), (offset, tracker.unfinished, tracker.span)
            assert len(tracker.commit()[1]) <= METADATA_LIMIT_BYTES
    restored = OffsetTracker.restore(*tracker.commit())
    assert all(restored.is_finished(offset) == tracker.is_finished(offset) for offset in range(tracker.position))
    assert tracker.span > 2 * MAX_SPAN


def size_of(low: int, top: int, unfinished: list[int]) -> int:
    return min(len(gaps(low, [*unfinished, top])), mixed_bytes(low, top, unfinished))


@given(st.integers(0, 10**6))
def test_a_mixture_gives_back_what_is_unfinished_and_does_not_grow(seed: int) -> None:
    """Stretches in which every second or so is unfinished, far apart."""
    draw, top = Random(seed), 0
    unfinished: list[int] = []
    for _ in range(draw.randrange(1, 30)):
        top += draw.randrange(5000)
        length = draw.randrange(1, 300)
        unfinished += [top + index for index in range(length) if draw.random() < 0.5]
        top += length
    top += 1
    while unfinished:
        low = unfinished[0]
        assert decode(low, encode(low, top, unfinished)) == (top, unfinished)
        size = mixed_bytes(low, top, unfinished)
        unfinished = [offset for offset in unfinished if draw.random() < 0.7]
        if unfinished:
            assert size_of(unfinished[0], top, unfinished) <= size + 2


def test_what_the_first_release_wrote_is_read() -> None:
    """Offsets 1, 3 and 12 above 0, as a bitmap."""
    restored = OffsetTracker.restore(0, "b:ChA=")
    assert [offset for offset in range(20) if restored.is_finished(offset)] == [1, 3, 12]
    assert restored.commit()[0] == 0


@given(st.integers(0, 10**6), st.sets(st.integers(0, 3_000)), st.integers(0, 3_000))
def test_metadata_gives_back_what_was_finished(start: int, unfinished: set[int], top: int) -> None:
    tracker = OffsetTracker(start)
    for offset in range(start, start + top + 1):
        tracker.begin(offset)
        if offset - start not in unfinished:
            tracker.finish(offset)
    low, metadata = tracker.commit()
    restored = OffsetTracker.restore(low, metadata)
    for offset in range(low, start + top + 2):
        assert restored.is_finished(offset) == (offset - start <= top and offset - start not in unfinished)
    assert restored.commit() == (low, metadata)


@given(st.data())
def test_crashes_lose_nothing_and_repeat_only_the_unfinished(data: st.DataObject) -> None:
    """Begin and finish in any order, crash at any time: what was finished stays so, the rest comes again."""
    log = sorted(data.draw(st.sets(st.integers(0, 80), min_size=1)))
    tracker, finished = OffsetTracker(0), set[int]()
    for _ in range(data.draw(st.integers(1, 4))):
        low, metadata = tracker.commit()
        assert finished == {offset for offset in log if tracker.is_finished(offset)} & finished
        tracker = OffsetTracker.restore(low, metadata)
        delivered = [offset for offset in log if offset >= low]
        assert finished == {o for o in log if o < low} | {o for o in delivered if tracker.is_finished(o)}
        for offset in delivered[: data.draw(st.integers(0, len(delivered)))]:
            if not tracker.is_finished(offset):
                tracker.begin(offset)
                if data.draw(st.booleans()):
                    tracker.finish(offset)
                    finished.add(offset)
        low, _ = tracker.commit()
        assert all(offset in finished for offset in log if offset < low)


def test_advance_passes_markers_at_the_end_and_never_an_open_offset() -> None:
    tracker = OffsetTracker(0)
    tracker.begin(0)
    tracker.begin(1)
    tracker.finish(1)
    tracker.advance(5)
    assert tracker.commit()[0] == 0
    tracker.finish(0)
    assert tracker.commit() == (5, "")
    tracker.advance(3)
    assert tracker.commit() == (5, "")
    with pytest.raises(ValueError, match="begun after offset 4"):
        tracker.begin(4)
    tracker.begin(5)


@given(log=st.sets(st.integers(0, 40), min_size=1), done=st.sets(st.integers(0, 40)), extra=st.integers(0, 5))
def test_a_restored_tracker_that_is_advanced_keeps_the_unfinished(log: set[int], done: set[int], extra: int) -> None:
    """The end of the log after a crash: what was unfinished is begun again, and the rest is passed."""
    first = OffsetTracker(0)
    for offset in sorted(log):
        first.begin(offset)
    for offset in log & done:
        first.finish(offset)
    end = max(log) + 1 + extra
    tracker = OffsetTracker.restore(*first.commit())
    for offset in sorted(log):
        if offset >= first.commit()[0] and not tracker.is_finished(offset):
            tracker.begin(offset)
    tracker.advance(end)
    assert tracker.commit()[0] == min(log - done, default=end)
    for offset in log - done:
        tracker.finish(offset)
    assert tracker.commit() == (end, "")
