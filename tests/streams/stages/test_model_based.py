"""The tracker as a stage uses it, against a set: crashes, gaps and markers in any order lose and repeat nothing."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from streams.stages.offsets import METADATA_LIMIT_BYTES, OffsetTracker


class TrackerMachine(RuleBasedStateMachine):
    """The reference is `done`, the set of finished records; `durable` is what had been committed of it at a crash."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[int] = []
        self.end = 0
        self.tracker = OffsetTracker(0)
        self.read = 0
        self.open: set[int] = set()
        self.done: set[int] = set()
        self.committed: tuple[int, str] = (0, "")
        self.durable: set[int] = set()

    @initialize(first=st.integers(0, 5))
    def start(self, first: int) -> None:
        self.end = first

    @rule(records=st.integers(1, 4), gap=st.integers(0, 3))
    def written(self, records: int, gap: int) -> None:
        """Records, and transaction markers behind them that take offsets too."""
        self.log += range(self.end, self.end + records)
        self.end += records + gap

    @rule(most=st.integers(1, 6))
    def delivered(self, most: int) -> None:
        for offset in [offset for offset in self.log if offset >= self.read][:most]:
            assert self.tracker.is_finished(offset) == (offset in self.done)
            if offset not in self.done:
                self.tracker.begin(offset)
                self.open.add(offset)
            self.read = offset + 1

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def finished(self, data: st.DataObject) -> None:
        offset = data.draw(st.sampled_from(sorted(self.open)))
        self.tracker.finish(offset)
        self.open.remove(offset)
        self.done.add(offset)

    @precondition(lambda self: not any(offset >= self.read for offset in self.log))
    @rule()
    def drained(self) -> None:
        self.tracker.advance(self.end)
        self.read = self.end
        if not self.open:
            assert self.tracker.commit() == (self.end, "")

    @rule()
    def commit(self) -> None:
        self.committed, self.durable = self.tracker.commit(), set(self.done)

    @rule()
    def crash(self) -> None:
        """What was not committed comes again; what was is never worked on again."""
        self.tracker = OffsetTracker.restore(*self.committed)
        self.read, self.open, self.done = self.committed[0], set(), set(self.durable)

    @rule(asked=st.booleans())
    def moved_to_another_owner(self, asked: bool) -> None:
        """A rebalance: the old owner commits where it is asked in time, and finishes too late what it had in flight."""
        if asked:
            self.commit()
        old, in_flight = self.tracker, sorted(self.open)
        self.crash()
        for offset in in_flight:
            old.finish(offset)
        assert not any(self.tracker.is_finished(offset) for offset in in_flight), "its successor takes them again"

    @invariant()
    def the_watermark_is_the_lowest_unfinished(self) -> None:
        low, metadata = self.tracker.commit()
        assert all(offset in self.done for offset in self.log if offset < low)
        assert self.tracker.unfinished == len(self.open)
        assert len(metadata) <= METADATA_LIMIT_BYTES


TestTracker = TrackerMachine.TestCase
TestTracker.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
