"""Several operators replay the same dead letter: its record is written once, and the others are refused."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import msgspec
import pytest
from kafka import KafkaProducer

from analysis.errors import AnalysisError
from analysis.history.dead_letters import DeadLetterEntry, put_back, read_dead_letters
from analysis.history.run_log import RunLog
from schemas import DeadLetterReplayed, Ref
from schemas.events.earlier_forms import AnyDeadLetter
from streams.broker import Broker
from streams.log.dead_letters import dead_letter
from streams.record import Record
from tests.run_logs import new_run, write

PARTITIONS = 2
SOURCES = ("scores/1@0", "scores/1@1")


@pytest.fixture
def log(broker: Broker, prefix: str) -> RunLog:
    """A run with two dead letters."""
    refused = [Record("scores", 1, offset, b"p.0", b"junk %d" % offset, {}, 1.0) for offset in range(len(SOURCES))]
    dead_letters = [dead_letter(record, "groups", "no event", 2.0) for record in refused]
    asyncio.run(write(new_run(broker, PARTITIONS, prefix), *dead_letters))
    return RunLog(broker.bootstrap, prefix)


def values_put_back(log: RunLog) -> list[bytes]:
    # A commit is answered before its markers are written; who takes over the transactional id waits for them.
    put_back(log, PARTITIONS, [])
    return [record.value for record in log.read("scores")]


def notes(log: RunLog) -> list[str]:
    found = [event for event, _ in log.events("dead-letters") if isinstance(event, DeadLetterReplayed)]
    return [f"{note.source.topic}/{note.source.partition}@{note.source.offset}" for note in found]


def all_entries(log: RunLog) -> list[DeadLetterEntry]:
    return list(read_dead_letters(log, SOURCES).values())


def test_who_read_the_list_before_another_put_it_back_is_refused(log: RunLog) -> None:
    read_before = all_entries(log)
    first = put_back(log, PARTITIONS, read_before[:1])
    assert set(first) == {SOURCES[0]}
    with pytest.raises(AnalysisError, match=f"dead letter {SOURCES[0]} was replayed already, as scores/1@0"):
        put_back(log, PARTITIONS, reversed(read_before))
    assert values_put_back(log) == [b"junk 0"], "nothing of a refused command is written"
    assert set(put_back(log, PARTITIONS, read_before[1:])) == {SOURCES[1]}


def test_an_id_given_twice_is_put_back_once(log: RunLog) -> None:
    (entry, _) = all_entries(log)
    put_back(log, PARTITIONS, [entry, entry])
    assert values_put_back(log) == [b"junk 0"]


def test_operators_at_the_same_time_put_each_record_back_once(log: RunLog) -> None:
    operators = 4
    barrier = Barrier(operators)
    entries = all_entries(log)

    def operate(_: int) -> str | None:
        barrier.wait(30)
        try:
            put_back(log, PARTITIONS, entries)
        except AnalysisError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(operators) as pool:
        refusals = [line for line in pool.map(operate, range(operators)) if line is not None]
    assert len(refusals) >= operators - 1
    assert all("took over" in line or "was replayed already" in line for line in refusals), refusals
    left = [entry for entry in all_entries(log) if entry.replayed is None]
    if left:
        # An operator fenced between two records has replayed the first, for which the next one was refused.
        put_back(log, PARTITIONS, left)
    assert sorted(values_put_back(log)) == [b"junk 0", b"junk 1"]
    assert sorted(notes(log)) == sorted(SOURCES)


def test_what_an_earlier_version_replayed_and_purged_is_refused(log: RunLog) -> None:
    """Its notes had the type of the dead letter itself."""
    first, second = (entry.event for entry in all_entries(log))
    fields = {"stage": "groups", "error": "no event", "data": b"", "time_s": 3.0}
    notes_of_then = [
        AnyDeadLetter(source=first.source, replayed=Ref("scores", 1, 7), **fields),  # type: ignore[arg-type]
        AnyDeadLetter(source=second.source, purged=True, **fields),  # type: ignore[arg-type]
    ]
    producer = KafkaProducer(bootstrap_servers=log.bootstrap)
    for note in notes_of_then:
        producer.send(log.full("dead-letters"), msgspec.msgpack.encode(note)).get(timeout=10)
    producer.close()
    replayed, purged = all_entries(log)
    assert (replayed.state, purged.state) == ("replayed", "purged")
    with pytest.raises(AnalysisError, match=f"dead letter {SOURCES[0]} was replayed already, as scores/1@7"):
        put_back(log, PARTITIONS, [replayed])
    with pytest.raises(AnalysisError, match=f"dead letter {SOURCES[1]} was purged: its bytes are gone"):
        put_back(log, PARTITIONS, [purged])
    assert values_put_back(log) == []
