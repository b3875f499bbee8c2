"""Dead letters for the topics that no stage consumes with a commit: batches, steps, weights, applied, dead-letters.

The dispatcher reads all of them from the beginning, and the dead letters too, so it alone can tell a record that has
its dead letter from one that has none; it is one instance, and transactional. So each such record has exactly one
dead letter, however often the learner, the producers and the dispatcher itself read over it.
"""

from typing import Final

from schemas import DeadLetter, DeadLetterPurged, DeadLetterReplayed, Event, Ref
from streams.log.dead_letters import dead_letter
from streams.record import Output, Record

KEPT: Final = frozenset({"batches", "steps", "weights", "applied", "dead-letters"})
"""Topics whose unreadable records are the dispatcher's; the others have a stage that commits them."""


class UnownedDeadLetters:
    """Records of `KEPT` that are no event of their topic, until they have a dead letter. Pure."""

    def __init__(self) -> None:
        self._waiting: dict[Ref, tuple[Record, str]] = {}
        self._recorded: set[Ref] = set()

    def on_event(self, event: Event) -> None:
        """A record of any topic: a record that has its dead letter on the log, or had, needs no second one."""
        if isinstance(event, DeadLetter | DeadLetterReplayed | DeadLetterPurged) and event.source.topic in KEPT:
            self._recorded.add(event.source)
            self._waiting.pop(event.source, None)

    def refuse(self, record: Record, error: str) -> None:
        """A record that is no event of its topic, and why."""
        if record.topic in KEPT and record.ref not in self._recorded:
            self._waiting[record.ref] = (record, error)

    def dead_letters(self, now_s: float) -> list[Output]:
        """The dead letters to be written; they count as written. Only after the log was read to its end."""
        found = [dead_letter(record, "dispatcher", error, now_s) for record, error in self._waiting.values()]
        self._recorded.update(self._waiting)
        self._waiting.clear()
        return found
