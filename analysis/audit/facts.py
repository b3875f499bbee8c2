"""What the log records of a million rollouts in about 70 bytes each: columns by partition and offset, no objects.

A rollout ordinarily has one place (the record that states it) for each kind of fact. Further records of the same fact
(a score re-published after a crash, a contradiction) go into `more`, which stays small.
"""

from array import array
from collections.abc import Iterator, Mapping
from typing import Final, Literal, NamedTuple, get_args

from schemas import Disposition, Ref

DISPOSITIONS: Final[tuple[Disposition, ...]] = get_args(Disposition)

PRODUCED: Final = 1
READY: Final = 2
LATE: Final = 4
"""The aggregator had forgotten its group when it was scored: it is `expired` unless another record disposed of it."""

Fact = Literal["scored", "closed", "planned"]

_GROWTH: Final = 4096
_FARTHEST: Final = 1 << 26
"""A reference this far beyond every known offset comes from a damaged record: no memory is allocated for it."""

_BIT: Final = {name: 1 << n for n, name in enumerate(DISPOSITIONS)}
_TOPIC: Final[dict[Fact, str]] = {"scored": "scores", "closed": "groups", "planned": "batches"}


class Slot(NamedTuple):
    """One rollout's row: its partition's columns and the index in them."""

    columns: "Columns"
    row: int


class Columns:
    """The rollouts of one partition from offset `first` on, a row each.

    `facts` holds PRODUCED, READY and LATE as bits, `ends` the recorded dispositions as bits, `since_s` the broker's
    time of the rollout's record (unix seconds), `places` for each fact the packed reference of its first record (-1:
    none).
    """

    def __init__(self, partition: int, first: int) -> None:
        self.partition = partition
        self.first = first
        self.facts = bytearray()
        self.ends = bytearray()
        self.since_s = array("d")
        self.places: dict[Fact, array[int]] = {fact: array("q") for fact in _TOPIC}
        self.more: dict[tuple[Fact, int], list[int]] = {}
        self._name_at = array("q")
        self._names = bytearray()

    def __len__(self) -> int:
        return len(self.facts)

    def reach(self, index: int) -> bool:
        """Allocate rows up to `index`; False where it is too far beyond the known offsets to be real."""
        short = index + 1 - len(self.facts)
        if short <= 0:
            return True
        if short > _FARTHEST:
            return False
        grown = short + _GROWTH + len(self.facts) // 4
        self.facts.extend(bytes(grown))
        self.ends.extend(bytes(grown))
        self.since_s.extend(array("d", bytes(8 * grown)))
        for column in (*self.places.values(), self._name_at):
            column.frombytes(b"\xff" * (8 * grown))
        return True

    def end(self, index: int, disposition: Disposition) -> None:
        """Record a disposition that a stage has written."""
        self.ends[index] |= _BIT[disposition]

    def note(self, fact: Fact, index: int, place: Ref) -> None:
        """Record that the record at `place` states `fact` about the rollout."""
        column = self.places[fact]
        packed = place.partition << 44 | place.offset
        if column[index] < 0:
            column[index] = packed
        else:
            self.more.setdefault((fact, index), []).append(packed)

    def noted(self, fact: Fact, index: int) -> list[Ref]:
        """The references of all records that state `fact`."""
        first = self.places[fact][index]
        if first < 0:
            return []
        packed = [first, *self.more.get((fact, index), ())]
        return [Ref(_TOPIC[fact], place >> 44, place & (1 << 44) - 1) for place in packed]

    def is_named(self, index: int) -> bool:
        """Whether its rollout id is known."""
        return self._name_at[index] >= 0

    def name(self, index: int, rollout_id: str) -> None:
        """Record its rollout id; the first one counts."""
        if self._name_at[index] < 0:
            self._name_at[index] = len(self._names)
            self._names += rollout_id.encode() + b"\0"

    def name_bytes(self, index: int) -> bytes:
        """Its rollout id; empty where no record named it."""
        start = self._name_at[index]
        return b"" if start < 0 else bytes(self._names[start : self._names.index(0, start)])

    def ends_of(self, index: int) -> list[Disposition]:
        """The dispositions that stages have written."""
        bits = self.ends[index]
        return [name for name, bit in _BIT.items() if bits & bit] if bits else []

    def ref(self, index: int) -> Ref:
        """The reference of the rollout's record."""
        return Ref("rollouts", self.partition, self.first + index)


class Window(NamedTuple):
    """The offsets of `rollouts` that are judged, by partition: from `first` (0 where absent) to before `end`."""

    first: Mapping[int, int]
    end: Mapping[int, int] | None = None


class Tally:
    """The rows of all rollouts inside the window that any record refers to.

    `absurd` collects references to rollouts that cannot exist.
    """

    def __init__(self, window: Window) -> None:
        self._window = window
        self._partitions: dict[int, Columns] = {}
        self.absurd: set[Ref] = set()

    def slot(self, rollout: Ref) -> Slot | None:
        """The row of a rollout; None where it is outside the window, or cannot exist (then it is in `absurd`)."""
        topic, partition, offset = rollout
        columns = self._partitions.get(partition)
        if columns is None:
            columns = Columns(partition, self._window.first.get(partition, 0))
        index = offset - columns.first
        end = self._window.end
        if index < 0 <= offset or (end is not None and offset >= end.get(partition, 0)):
            return None
        if topic != "rollouts" or partition < 0 or index < 0 or not columns.reach(index):
            self.absurd.add(Ref(*rollout))
            return None
        self._partitions[partition] = columns
        return Slot(columns, index)

    def __iter__(self) -> Iterator[tuple[Columns, int]]:
        """The rows about which anything is recorded, in the order of partition and offset."""
        for _, columns in sorted(self._partitions.items()):
            scored, closed, planned = (columns.places[fact] for fact in ("scored", "closed", "planned"))
            for index, facts in enumerate(columns.facts):
                recorded = facts or columns.ends[index]
                if recorded or scored[index] >= 0 or closed[index] >= 0 or planned[index] >= 0:
                    yield columns, index
