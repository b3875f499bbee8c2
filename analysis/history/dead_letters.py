"""The dead letters of a run for tools: one per refused record, its state, replaying it and purging it."""

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
from schemas import (
    TOPICS,
    DeadLetter,
    DeadLetterPurged,
    DeadLetterReplayed,
    Ref,
    UndecodableError,
    encode,
    schema_header,
)
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
class DeadLetterEntry:
    """One refused record: its dead letter, the place of that on the log, and whether it was replayed or purged.

    `bytes` is the size of the original record, `ends` are the rollouts whose disposition it is. `event.data` is empty
    unless `read_dead_letters` was called to keep it. `replayed` is the place of the record since it was replayed.
    """

    event: DeadLetter
    ref: Ref
    bytes: int
    ends: tuple[Ref, ...]
    replayed: Ref | None = None
    purged: bool = False

    @property
    def id(self) -> str:
        """The place of the refused record, `<topic>/<partition>@<offset>`."""
        return place(self.event.source)

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


def read_dead_letters(log: RunLog, keep: Collection[str] = ()) -> dict[str, DeadLetterEntry]:
    """The dead letters by id, in the order of the log; of several about one record the first counts.

    Only those whose ids are in `keep` hold the record's data: a list must not hold every record that ever failed.
    """
    found: dict[str, DeadLetterEntry] = {}
    for record in log.read(TOPIC):
        try:
            event = event_of(record)
        except (UndecodableError, Poison):
            continue  # the dispatcher writes a dead letter about it
        assert isinstance(event, DeadLetter | DeadLetterReplayed | DeadLetterPurged)
        name = place(event.source)
        known = found.get(name)
        match event:
            case DeadLetterPurged():
                # The dead letter itself is deleted after this note, or already was.
                before = known or DeadLetterEntry(_remains(event), record.ref, 0, event.ends)
                found[name] = dataclasses.replace(before, purged=True, replayed=event.replayed or before.replayed)
            case DeadLetterReplayed():
                if known is not None:
                    found[name] = dataclasses.replace(known, replayed=event.replayed)
            case DeadLetter():
                if known is None:
                    ends, size = tuple(dead_rollouts(event)), len(event.data)
                    if name not in keep:
                        event = msgspec.structs.replace(event, data=b"")
                    found[name] = DeadLetterEntry(event, record.ref, size, ends)
    return found


def _remains(note: DeadLetterPurged) -> DeadLetter:
    """The dead letter without its record, as far as the note of its purge tells it."""
    return DeadLetter(
        source=note.source,
        stage=note.stage,
        error=note.error,
        data=b"",
        time_s=note.refused_s,
        key=note.key,
        attempts=note.attempts,
        config_digest=note.config_digest,
    )


def chosen(entries: dict[str, DeadLetterEntry], ids: Iterable[str]) -> list[DeadLetterEntry]:
    """The dead letters with these ids. AnalysisError names one that does not exist."""
    for name in ids:
        if name not in entries:
            raise AnalysisError(f"there is no dead letter {name}; `eachprompt dlq list` names those there are")
    return [entries[name] for name in ids]


def put_back(log: RunLog, partitions: int, entries: Iterable[DeadLetterEntry]) -> dict[str, Ref]:
    """Write each record to its topic again, with its partition, key, headers and history; returns id → its new place.

    The record and the note of its replay are one transaction. All callers have one transactional id: whoever comes
    later fences the others and then reads the notes again, so that no record is replayed twice however many try at
    once. AnalysisError: one of them cannot be replayed, and nothing is written; or another call took over.
    """
    wanted = list({entry.id: entry for entry in entries}.values())
    for entry in wanted:
        _check_replayable(entry, partitions)
    return asyncio.run(_put_back(log, partitions, wanted))


async def _put_back(log: RunLog, partitions: int, entries: list[DeadLetterEntry]) -> dict[str, Ref]:
    client = Log(LogSettings(log.bootstrap, log.run, partitions), "eachprompt-dlq")
    producer = client.producer(f"{log.run}.dlq")
    placed: dict[str, Ref] = {}
    try:
        await within(_CALL_S, f"for the transaction coordinator of {log.run}.dlq", producer.start())
        # Others are fenced now: what they replayed before is on the log, and they cannot replay anything more.
        now = await asyncio.to_thread(read_dead_letters, log)
        for entry in entries:
            _check_replayable(now.get(entry.id, entry), partitions)
        for entry in entries:
            event = entry.event
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
                note = DeadLetterReplayed(source=event.source, stage=event.stage, replayed=ref, time_s=time.time())
                await producer.send_and_wait(
                    client.full(TOPIC), encode(note), entry.id.encode(), partition=0, headers=_note_headers(log, note)
                )
                await producer.commit_transaction()
            placed[entry.id] = ref
    except TimeoutError as error:
        raise AnalysisError(f"the broker did not take a replayed record within {_CALL_S:g} s") from error
    except ProducerFenced as error:
        done = f"; this one has replayed {', '.join(placed)}" if placed else ""
        raise AnalysisError(f"another `eachprompt dlq replay` of run {log.run} took over{done}") from error
    except KafkaError as error:
        raise StreamsError(f"records cannot be replayed: {type(error).__name__} {error}") from error
    finally:
        await close(producer.stop(), 5.0)
    return placed


def _check_replayable(entry: DeadLetterEntry, partitions: int) -> None:
    source = entry.event.source
    if entry.replayed is not None:
        raise AnalysisError(f"dead letter {entry.id} was replayed already, as {place(entry.replayed)}")
    if entry.purged:
        raise AnalysisError(f"dead letter {entry.id} was purged: its bytes are gone")
    if source.topic == TOPIC or source.topic not in TOPICS:
        raise AnalysisError(f"dead letter {entry.id} is of topic {source.topic}, to which nothing is replayed")
    count = partitions if TOPICS[source.topic].sharded else 1
    if source.partition >= count:
        raise AnalysisError(f"dead letter {entry.id} is of partition {source.partition}, and the run has {count}")


def purge(log: RunLog, before_s: float | None) -> int:
    """Delete the dead letters written before `before_s` (unix seconds; None: all); returns how many.

    A dead letter is the disposition of its rollouts, which `audit` needs as long as they are on the log. Each deleted
    one therefore leaves a short note without the record's bytes, which a later purge drops once its source is gone.
    """
    entries = read_dead_letters(log)
    dead = [entry for entry in entries.values() if not entry.purged]
    staying = [entry.ref.offset for entry in dead if before_s is not None and entry.event.time_s >= before_s]
    with Admin(log.bootstrap) as admin:
        full = log.full(TOPIC)
        # They are in the order of time except where clocks differ: the first one to stay bounds the deletion.
        cut = min([admin.end_offsets([full], committed_only=True)[TopicPartition(full, 0)], *staying])
        starts = admin.start_offsets([log.full(topic) for topic in TOPICS])
        needed = [entry for entry in entries.values() if _is_needed(log, entry, cut, starts)]
        asyncio.run(_write_notes(log, [_purge_note(entry) for entry in needed]))
        if cut > starts[TopicPartition(full, 0)]:
            admin.delete_records({TopicPartition(full, 0): cut})
    return sum(entry.ref.offset < cut for entry in dead)


def _is_needed(log: RunLog, entry: DeadLetterEntry, cut: int, starts: dict[TopicPartition, int]) -> bool:
    """Whether a dead letter below `cut` is about a record that is still on the log."""
    source = entry.event.source
    start = starts.get(TopicPartition(log.full(source.topic), source.partition), 0) if source.topic in TOPICS else 0
    return entry.ref.offset < cut and source.offset >= start


def _purge_note(entry: DeadLetterEntry) -> DeadLetterPurged:
    """The note that a purged dead letter leaves."""
    event = entry.event
    # A replayed score or group is disposed of by its stage again; a replayed rollout is another record.
    ends = () if entry.replayed is not None and event.source.topic != "rollouts" else entry.ends
    return DeadLetterPurged(
        source=event.source,
        stage=event.stage,
        error=event.error,
        refused_s=event.time_s,
        time_s=time.time(),
        key=event.key,
        attempts=event.attempts,
        ends=ends,
        replayed=entry.replayed,
        config_digest=event.config_digest,
    )


async def _write_notes(log: RunLog, notes: list[DeadLetterPurged]) -> None:
    if not notes:
        return
    client = Log(LogSettings(log.bootstrap, log.run, 1), "eachprompt-dlq")
    producer = client.producer()
    try:
        await within(_CALL_S, f"for the broker at {log.bootstrap}", producer.start())
        for note in notes:
            sending = producer.send_and_wait(
                client.full(TOPIC), encode(note), place(note.source).encode(), 0, headers=_note_headers(log, note)
            )
            await within(_CALL_S, "for the broker to take a record of dead-letters", sending)
    except KafkaError as error:
        raise StreamsError(f"dead letters cannot be purged: {type(error).__name__} {error}") from error
    finally:
        await close(producer.stop(), 5.0)


def _note_headers(log: RunLog, event: DeadLetterReplayed | DeadLetterPurged) -> list[tuple[str, bytes]]:
    return [(names.SCHEMA, schema_header(event)), (names.RUN_HEADER, log.run.encode())]


def record_in(entry: DeadLetterEntry) -> Record:
    """The original record as the stage that refused it had read it."""
    event = entry.event
    return Record(*event.source, key=event.key, value=event.data, headers=event.headers, time_s=event.time_s)
