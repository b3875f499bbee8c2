"""Stateful stages, exactly once: what a stage is. The aggregator and the batcher are such.

A stage is a pure state machine (`Processor`) that turns input records into outputs and says which inputs are done with.
The runner (`streams.stages.runner`) gives it the records in log order, and writes outputs and consumed offsets in one
transaction. There is no changelog: inputs that are not finished are delivered again after a restart and rebuild the
state (docs/delivery.md).
"""

from dataclasses import dataclass
from typing import Literal, Protocol

from schemas import Event, Ref
from streams.log.tail import Tail
from streams.record import Output, Record


@dataclass(frozen=True, slots=True)
class ProcessResult:
    """What one call of a fold leads to: events to write and input records that are done with."""

    outputs: tuple[Output, ...] = ()
    finished: tuple[Ref, ...] = ()


class Processor(Protocol):
    """A pure state machine over input records; it has no clock and does no I/O."""

    def on_event(self, event: Event, record: Record, now_s: float) -> ProcessResult:
        """An input record. Poison: it goes to the dead letters."""

    def on_side_input(self, event: Event, record: Record, now_s: float) -> ProcessResult:
        """A record of a side topic, which is read from its beginning at every start and never committed."""

    def on_recalled(self, event: Event, record: Record) -> None:
        """An earlier output of this stage, at start and before any input."""

    def on_time(self, now_s: float) -> ProcessResult:
        """Deadlines: called once `next_time_s` has passed."""

    def next_time_s(self) -> float | None:
        """The unix time at which `on_time` is wanted, if any."""

    def waiting(self, now_s: float) -> list[str]:
        """What it waits for, in sentences for `eachprompt status`."""


@dataclass(frozen=True)
class ProcessorSpec:
    """A stage: its name, its input, side topics, which own outputs it recalls, and one fold a partition or over all.

    `also` are further inputs with as many partitions: delivered, finished and committed as the input's records are. At
    start they come first, up to where they end then. Another stage writes the letters of those that are unreadable.
    """

    stage: str
    input: str
    observe: tuple[str, ...] = ()
    recall: Tail | None = None
    shard: Literal["partition", "all"] = "partition"
    extra_inputs: tuple[str, ...] = ()
