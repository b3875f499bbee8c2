"""Stateful stages, exactly once: what a stage is. The aggregator and the batcher are such stages.

A stage is a pure state machine (`Processor`) that turns input records into outputs and says which inputs are finished.
The runner (`streams.stages.runner`) gives it the records in log order and writes outputs and consumed offsets in one
transaction. There is no changelog: after a restart the inputs that were not finished are delivered again, and rebuild
the state.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

from schemas import Event, Ref
from streams.log.tail import Tail
from streams.record import Output, Record


@dataclass(frozen=True, slots=True)
class ProcessResult:
    """What one call of a processor leads to: events to write, and input records that are finished."""

    outputs: tuple[Output, ...] = ()
    finished: tuple[Ref, ...] = ()


class Processor(Protocol):
    """A pure state machine over input records; it has no clock and does no I/O."""

    def on_event(self, event: Event, record: Record, now_s: float) -> ProcessResult:
        """An input record. Poison: it becomes a dead letter."""

    def on_side_input(self, event: Event, record: Record, now_s: float) -> ProcessResult:
        """A record of a side input, which is read from its beginning at every start and never committed."""

    def on_own_output(self, event: Event, record: Record) -> None:
        """An earlier output of this stage, at start and before any input."""

    def on_time(self, now_s: float) -> ProcessResult:
        """Deadlines: called once `next_time_s` has passed."""

    def next_time_s(self) -> float | None:
        """The unix time at which `on_time` is wanted, if any."""

    def waiting(self, now_s: float) -> list[str]:
        """What it waits for, in sentences for `eachprompt status`."""


@dataclass(frozen=True)
class ProcessorSpec:
    """A stage: its name, its input, and what else its processors read.

    `side_inputs` are topics of which the processors see every record and finish none. `own_outputs` is the tail of the
    stage's own outputs that they see again at start. `tasks`: one processor for each input partition, or one over all.

    `extra_inputs` are further inputs with as many partitions: delivered, finished and committed as the input's records
    are. At start they come first, up to where they end then. Another stage writes the dead letters of those that are
    unreadable.
    """

    stage: str
    input: str
    side_inputs: tuple[str, ...] = ()
    own_outputs: Tail | None = None
    tasks: Literal["per_partition", "one"] = "per_partition"
    extra_inputs: tuple[str, ...] = ()
