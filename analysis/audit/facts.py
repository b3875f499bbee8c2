"""What the log says of a million rollouts in about 70 bytes each: columns by partition and offset, no objects.

A rollout has one place for each kind of fact in the ordinary case; what is said a second time (a score repeated after a
crash, a contradiction) goes into `more`, which stays small.
"""

from array import array
from collections.abc import Iterator, Mapping
from typing import Final, Literal, NamedTuple, get_args

from schemas import Disposition, Ref

DISPOSITIONS: Final[tuple[Disposition, ...]] = get_args(Disposition)

PRODUCED: Final = 1
READY: Final = 2
LATE: Final = 4
"""Its group was forgotten when it was scored: it ended as `expired` where nothing else ended it."""

Fact = Literal["scored", "closed", "planned"]

_GROWTH: Final = 4096
_FARTHEST: Final = 1 << 26
"""A reference this far beyond everything known is a damaged record's, and no reason to allocate."""

_BIT: Final = {name: 1 << n for n, name in enumerate(DISPOSITIONS)}
_TOPIC: Final[dict[Fact, str]] = {"scored": "scores", "closed": "groups", "planned": "batches"}


class Slot(NamedTuple):
    """One rollout's row: its partition's columns and the index in them."""

    columns: "Columns"
    row: int


class Columns:
    """The rollouts of one partition from offset `first` on; `ends` is a set of dispositions as bits."""

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
        """Make room for `index`; False where that is absurd."""
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
        """A stage wrote this end down."""
        self.ends[index] |= _BIT[disposition]

    def note(self, fact: Fact, index: int, place: Ref) -> None:
        """The record at `place` says `fact` of the rollout."""
        column = self.places[fact]
        packed = place.partition << 44 | place.offset
        if column[index] < 0:
            column[index] = packed
        else:
            self.more.setdefault((fact, index), []).append(packed)

    def noted(self, fact: Fact, index: int) -> list[Ref]:
        """Every place that says `fact`."""
        first = self.places[fact][index]
        if first < 0:
            return []
        packed = [first, *self.more.get((fact, index), ())]
        return [Ref(_TOPIC[fact], place >> 44, place & (1 << 44) - 1) for place in packed]

    def is_named(self, index: int) -> bool:
        """Whether its rollout id is known."""
        return self._name_at[index] >= 0

    def name(self, index: int, rollout_id: str) -> None:
        """Its rollout id, kept as it is told first."""
        if self._name_at[index] < 0:
            self._name_at[index] = len(self._names)
            self._names += rollout_id.encode() + b"\0"

    def name_bytes(self, index: int) -> bytes:
        """Its rollout id; empty where nothing told it."""
        start = self._name_at[index]
        return b"" if start < 0 else bytes(self._names[start : self._names.index(0, start)])

    def ends_of(self, index: int) -> list[Disposition]:
        """The ends that stages wrote down."""
        bits = self.ends[index]
        return [name for name, bit in _BIT.items() if bits & bit] if bits else []

    def ref(self, index: int) -> Ref:
        """Where the rollout is."""
        return Ref("rollouts", self.partition, self.first + index)


class Window(NamedTuple):
    """The offsets of `rollouts` that are judged, by partition: from `first` (0 where absent) to before `end`."""

    first: Mapping[int, int]
    end: Mapping[int, int] | None = None


class Tally:
    """Every rollout that is named inside the window."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self._partitions: dict[int, Columns] = {}
        self.absurd: set[Ref] = set()

    def slot(self, rollout: Ref) -> Slot | None:
        """The row of a rollout; None where it is outside the window, or no rollout can be there (see `absurd`)."""
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
        """The rows of which anything is said, by partition and offset."""
        for _, columns in sorted(self._partitions.items()):
            scored, closed, planned = (columns.places[fact] for fact in ("scored", "closed", "planned"))
            for index, facts in enumerate(columns.facts):
                told = facts or columns.ends[index]
                if told or scored[index] >= 0 or closed[index] >= 0 or planned[index] >= 0:
                    yield columns, index
