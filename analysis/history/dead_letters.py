"""The dead letters of a run as a tool sees them: one a source, what became of it, and the ways to be rid of it."""

import asyncio
import dataclasses
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

import msgspec
from aiokafka.errors import KafkaError, ProducerFenced

from analysis.audit.names import dead_rollouts
from analysis.errors import AnalysisError, RequestError
from analysis.history.run_log import RunLog
from schemas import TOPICS, DeadLetter, Ref, UndecodableError, encode, schema_header
from streams.errors import Poison, StreamsError
from streams.log.admin import Admin, TopicPartition
from streams.log.aiokafka_fixes import close
from streams.log.clients import Log, LogSettings, within
from streams.log.dead_letters import event_of, place, replay_headers
from streams.record import Record
from streams.telemetry import names

TOPIC: Final = "dead-letters"
_CALL_S: Final = 30.0


@dataclass(frozen=True)
class Letter:
    """What is known of one source: its letter, where that is on the log, and whether it was put back or purged.

    `bytes` is the size of the original record, `ends` are the rollouts that end with it; `letter.data` is left out
    where only a list was asked for.
    """

    letter: DeadLetter
    ref: Ref
    bytes: int
    ends: tuple[Ref, ...]
    replayed: Ref | None = None
    purged: bool = False

    @property
    def id(self) -> str:
        """`<topic>/<partition>@<offset>` of the record that it is about."""
        return place(self.letter.source)

    @property
    def state(self) -> str:
        """`dead`, `replayed` or `purged`."""
        return "replayed" if self.replayed is not None else "purged" if self.purged else "dead"


def parse_id(text: str) -> str:
    """`rollouts/2@17`, also written `rollouts/2/17`. RequestError: anything else."""
    topic, _, rest = text.partition("/")
    partition, _, offset = rest.replace("/", "@").partition("@")
    if topic not in TOPICS or not (partition.isdigit() and offset.isdigit()):
        raise RequestError(f"id is {text!r}; allowed: TOPIC/PARTITION@OFFSET as `eachprompt dlq list` prints it")
    return f"{topic}/{int(partition)}@{int(offset)}"


def read_letters(log: RunLog, keep: Collection[str] = ()) -> dict[str, Letter]:
    """By id, in the order of the log; the first letter of a source counts.

    Only the letters whose ids are in `keep` hold their data: a list must not hold every record that ever failed.
    """
    found: dict[str, Letter] = {}
    for record in log.read(TOPIC):
        try:
            event = event_of(record)
        except (UndecodableError, Poison):
            continue  # the dispatcher writes a letter about it
        assert isinstance(event, DeadLetter)
        name = place(event.source)
        known = found.get(name)
        if event.purged:
            # What a purge left of a letter that is deleted next, or was.
            before = known or Letter(event, record.ref, 0, event.ends)
            found[name] = dataclasses.replace(before, purged=True, replayed=event.replayed or before.replayed)
        elif event.replayed is not None:
            if known is not None:
                found[name] = dataclasses.replace(known, replayed=event.replayed)
        elif known is None:
            ends, size = tuple(dead_rollouts(event)), len(event.data)
            if name not in keep:
                event = msgspec.structs.replace(event, data=b"")
            found[name] = Letter(event, record.ref, size, ends)
    return found


def chosen(letters: dict[str, Letter], ids: Iterable[str]) -> list[Letter]:
    """The letters of `ids`. AnalysisError names one that is not there."""
    for name in ids:
        if name not in letters:
            raise AnalysisError(f"there is no dead letter {name}; `eachprompt dlq list` names those there are")
    return [letters[name] for name in ids]


def replay(log: RunLog, partitions: int, letters: Iterable[Letter]) -> dict[str, Ref]:
    """Put each record back on its topic, with its partition, key, headers and history; id → where it is now.

    The record and the note that it was put back are one transaction. Whoever comes later ends what is under way
    elsewhere (all have one transactional id) and reads the notes again, so that no letter is put back twice however
    many do it at once. AnalysisError: a letter that cannot be put back, and nothing is written; or another took over.
    """
    wanted = list({letter.id: letter for letter in letters}.values())
    for letter in wanted:
        _check_replayable(letter, partitions)
    return asyncio.run(_replay(log, partitions, wanted))


async def _replay(log: RunLog, partitions: int, letters: list[Letter]) -> dict[str, Ref]:
    client = Log(LogSettings(log.bootstrap, log.run, partitions), "eachprompt-dlq")
    producer = client.producer(f"{log.run}.dlq")
    placed: dict[str, Ref] = {}
    try:
        await within(_CALL_S, f"for the transaction coordinator of {log.run}.dlq", producer.start())
        # Fenced: what another put back before this is on the log by now, and what it has not, it cannot any more.
        now = await asyncio.to_thread(read_letters, log)
        for letter in letters:
            _check_replayable(now.get(letter.id, letter), partitions)
        for letter in letters:
            event = letter.letter
            async with asyncio.timeout(_CALL_S):
                await producer.begin_transaction()
                sent = await producer.send_and_wait(
                    client.full(event.source.topic),
                    value=event.data,
                    key=event.key,
                    partition=event.source.partition,
                    headers=replay_headers(event),
                )
                ref = Ref(event.source.topic, sent.partition, sent.offset)
                note = msgspec.structs.replace(event, data=b"", headers={}, replayed=ref, time_s=time.time())
                await producer.send_and_wait(
                    client.full(TOPIC), encode(note), letter.id.encode(), partition=0, headers=_note_headers(log, note)
                )
                await producer.commit_transaction()
            placed[letter.id] = ref
    except TimeoutError as error:
        raise AnalysisError(f"the broker did not take a replayed record within {_CALL_S:g} s") from error
    except ProducerFenced as error:
        done = f"; this one has put back {', '.join(placed)}" if placed else ""
        raise AnalysisError(f"another `eachprompt dlq replay` of run {log.run} took over{done}") from error
    except KafkaError as error:
        raise StreamsError(f"records cannot be replayed: {type(error).__name__} {error}") from error
    finally:
        await close(producer.stop(), 5.0)
    return placed


def _check_replayable(letter: Letter, partitions: int) -> None:
    source = letter.letter.source
    if letter.replayed is not None:
        raise AnalysisError(f"dead letter {letter.id} was put back already, as {place(letter.replayed)}")
    if letter.purged:
        raise AnalysisError(f"dead letter {letter.id} was purged: its bytes are gone")
    if source.topic == TOPIC or source.topic not in TOPICS:
        raise AnalysisError(f"dead letter {letter.id} is of topic {source.topic}, to which nothing is put back")
    count = partitions if TOPICS[source.topic].sharded else 1
    if source.partition >= count:
        raise AnalysisError(f"dead letter {letter.id} is of partition {source.partition}, and the run has {count}")


def purge(log: RunLog, before_s: float | None) -> int:
    """Delete the letters written before `before_s` (None: all of them); how many.

    A letter is the end of its rollouts, and `audit` needs it as long as they are on the log: what is deleted leaves a
    short record without the bytes behind, which is dropped by a later purge once its source is gone.
    """
    letters = read_letters(log)
    dead = [letter for letter in letters.values() if not letter.purged]
    staying = [letter.ref.offset for letter in dead if before_s is not None and letter.letter.time_s >= before_s]
    with Admin(log.bootstrap) as admin:
        full = log.full(TOPIC)
        # Letters stand in the order of time but for clocks that differ: the first that stays bounds the deletion.
        cut = min([admin.end_offsets([full], committed_only=True)[TopicPartition(full, 0)], *staying])
        starts = admin.start_offsets([log.full(topic) for topic in TOPICS])
        needed = [letter for letter in letters.values() if _is_needed(log, letter, cut, starts)]
        asyncio.run(_leave_words(log, [_word(letter) for letter in needed]))
        if cut > starts[TopicPartition(full, 0)]:
            admin.delete_records({TopicPartition(full, 0): cut})
    return sum(letter.ref.offset < cut for letter in dead)


def _is_needed(log: RunLog, letter: Letter, cut: int, starts: dict[TopicPartition, int]) -> bool:
    """Whether a letter below `cut` is about a record that is still on the log."""
    source = letter.letter.source
    start = starts.get(TopicPartition(log.full(source.topic), source.partition), 0) if source.topic in TOPICS else 0
    return letter.ref.offset < cut and source.offset >= start


def _word(letter: Letter) -> DeadLetter:
    """What is left of a purged letter."""
    event = letter.letter
    # The rollouts of a score or group that was put back are in other hands; a rollout put back is another record.
    ends = () if letter.replayed is not None and event.source.topic != "rollouts" else letter.ends
    return msgspec.structs.replace(event, data=b"", headers={}, replayed=letter.replayed, purged=True, ends=ends)


async def _leave_words(log: RunLog, words: list[DeadLetter]) -> None:
    if not words:
        return
    client = Log(LogSettings(log.bootstrap, log.run, 1), "eachprompt-dlq")
    producer = client.producer()
    try:
        await within(_CALL_S, f"for the broker at {log.bootstrap}", producer.start())
        for word in words:
            sending = producer.send_and_wait(
                client.full(TOPIC), encode(word), place(word.source).encode(), 0, headers=_note_headers(log, word)
            )
            await within(_CALL_S, "for the broker to take a record of dead-letters", sending)
    except KafkaError as error:
        raise StreamsError(f"dead letters cannot be purged: {type(error).__name__} {error}") from error
    finally:
        await close(producer.stop(), 5.0)


def _note_headers(log: RunLog, event: DeadLetter) -> list[tuple[str, bytes]]:
    return [(names.SCHEMA, schema_header(event)), (names.RUN_HEADER, log.run.encode())]


def record_in(letter: Letter) -> Record:
    """The original record, as it was read by the stage that refused it."""
    event = letter.letter
    return Record(*event.source, key=event.key, value=event.data, headers=event.headers, time_s=event.time_s)
