"""What comes onto the log meanwhile: each service's progress, how long it took after each blow, what is still open."""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from aiokafka.errors import KafkaError

from schemas import (
    BatchPlanned,
    GroupDropped,
    GroupEvaluated,
    GroupReady,
    GroupRequested,
    StepCompleted,
    UndecodableError,
    decode,
)
from streams.errors import StreamsError
from streams.log.clients import Log, LogSettings
from streams.log.reader import Reader
from streams.record import Record

_TRUSTED_S: Final = 60.0
"""A record's own time that is further off comes from a clock that was made to jump."""

_OUTPUTS: Final = {
    "prompts": "dispatcher",
    "rollouts": "producer",
    "scores": "rewards",
    "groups": "groups",
    "batches": "batches",
    "steps": "learner",
}
"""Topic → the service whose progress its records are."""


@dataclass(frozen=True)
class Recovery:
    """`service` did something again `took_s` after a blow."""

    blow: str
    service: str
    took_s: float


@dataclass
class Progress:
    """Follows every topic through its own connection. `replicas` of a service own partitions by ordinal."""

    bootstrap: str
    run: str
    partitions: int
    replicas: dict[str, int]
    recoveries: list[Recovery] = field(default_factory=list)
    requested: Counter[str] = field(default_factory=Counter)
    sequences: Counter[int] = field(default_factory=Counter)
    closed: Counter[str] = field(default_factory=Counter)
    batches: Counter[int] = field(default_factory=Counter)
    steps: dict[int, StepCompleted] = field(default_factory=dict)
    recorded: Counter[int] = field(default_factory=Counter)
    contradictions: list[str] = field(default_factory=list)
    records: Counter[str] = field(default_factory=Counter)
    _waiting: dict[str, list[tuple[str, float, float]]] = field(default_factory=lambda: defaultdict(list))
    _positions: dict[tuple[str, int], int | None] = field(default_factory=dict)

    def hit(self, blow: str, service: str, at_s: float, since_s: float | None = None) -> None:
        """`service` was hit at `at_s`; what it writes from `since_s` on is progress after it (unix seconds)."""
        self._waiting[service].append((blow, at_s, since_s or at_s))

    def unrecovered(self) -> list[str]:
        """Blows after which nothing was heard of the service."""
        return [f"{service} after {blow}" for service, waits in self._waiting.items() for blow, _, _ in waits]

    @property
    def repeated_steps(self) -> int:
        """Steps that were recorded more than once, each time counted."""
        return self.recorded.total() - len(self.recorded)

    def open_groups(self) -> list[str]:
        """Groups that were asked for and have no end."""
        return sorted(self.requested.keys() - self.closed.keys())

    async def follow(self) -> None:
        """For ever; a broker that is away is asked again, from where reading stood."""
        log = Log(LogSettings(self.bootstrap, self.run, self.partitions, call_timeout_s=10.0), "chaos")
        self._positions = {(topic, p): None for topic in _OUTPUTS for p in log.partitions(topic)}
        while True:
            try:
                async with Reader(log, self._positions) as reader:
                    while True:
                        for record in await reader.poll(0.1):
                            self._positions[record.topic, record.partition] = record.offset + 1
                            self._take(record)
            except (StreamsError, KafkaError):
                await asyncio.sleep(0.2)

    def _take(self, record: Record) -> None:
        self.records[record.topic] += 1
        service = _OUTPUTS[record.topic]
        replicas = self.replicas.get(service, 1)
        name = service if replicas == 1 else f"{service}-{record.partition % replicas}"
        now_s = time.time()
        written_s = record.time_s if abs(record.time_s - now_s) < _TRUSTED_S else now_s
        for wait in list(self._waiting[name]):
            blow, at_s, since_s = wait
            if written_s > since_s:
                self._waiting[name].remove(wait)
                self.recoveries.append(Recovery(blow, service, written_s - at_s))
        if record.topic in ("prompts", "groups", "batches", "steps"):
            self._count(record)

    def _count(self, record: Record) -> None:
        try:
            event = decode(record.value)
        except UndecodableError as error:
            self.contradictions.append(f"{record.ref} does not decode: {error}")
            return
        match event:
            case GroupRequested():
                self.requested[event.group_id] += 1
                self.sequences[event.sequence] += 1
            case GroupReady() | GroupEvaluated():
                self.closed[event.group_id] += 1
            case GroupDropped() if record.topic == "groups":
                self.closed[event.group_id] += 1
            case BatchPlanned():
                self.batches[event.batch] += 1
            case StepCompleted():
                self.recorded[event.step] += 1
                first = self.steps.setdefault(event.step, event)
                if (first.batch_ref, self._untimed(first)) != (event.batch_ref, self._untimed(event)):
                    self.contradictions.append(f"step {event.step} is recorded twice and differently")
            case _:
                pass

    @staticmethod
    def _untimed(step: StepCompleted) -> dict[str, float]:
        return {name: value for name, value in step.metrics.items() if not name.startswith("time/")}

    async def until(self, what: str, condition: Callable[[], bool], deadline_s: float) -> bool:
        """Waits until `condition` holds, at most `deadline_s`; whether it does."""
        end_s = time.monotonic() + deadline_s
        while not condition():
            if time.monotonic() > end_s:
                self.contradictions.append(f"waited {deadline_s:g} s {what}")
                return False
            await asyncio.sleep(0.05)
        return True
