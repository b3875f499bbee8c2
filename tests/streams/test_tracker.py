"""The offset tracker against a reference of sets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.tracker import MAX_SPAN, METADATA_LIMIT_BYTES, OffsetTracker


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
