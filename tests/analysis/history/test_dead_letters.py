"""`eachprompt dlq`: a record that a stage refused is listed, shown, put back with its history, and purged."""

import asyncio
import base64
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaProducer

from analysis.history.read import audit_of
from analysis.history.run_log import RunLog
from consumers.groups import service as groups
from consumers.groups.settings import GroupSettings
from deploy.cli.commands.demo import DEMO
from deploy.cli.main import main
from deploy.config.kept import adopt
from deploy.config.run import RunConfig, load
from deploy.local.session import create_run_topics
from schemas import TOPICS, DeadLetter, Ref, RolloutScored, encode, partition_of
from streams.broker import open_broker, running_broker
from streams.log.dead_letters import dead_letter, failures_before, history, replay_headers
from streams.record import Record
from streams.telemetry import names
from tests.builders import rollout_scored, service_of
from tests.run_logs import log_at

PARTITIONS = 2
TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunConfig]:
    """A run whose broker is up, with nothing on its topics."""
    directory = tmp_path_factory.mktemp("dlq") / "run"
    config = load(DEMO, directory=directory, overrides=["broker.kind=embedded", f"run.partitions={PARTITIONS}"])
    adopt(config)
    with open_broker(config.broker.build(), directory) as broker:
        create_run_topics(config, broker.bootstrap)
        yield config


@pytest.fixture
def bootstrap(config: RunConfig) -> Iterator[str]:
    """Where that broker answers."""
    with running_broker(config.broker.build(), config.directory, 30.0) as address:
        yield address


@pytest.fixture
def dlq(config: RunConfig, capsys: pytest.CaptureFixture[str]) -> Ask:
    """`dlq("list", code=0)`: what `dlq list --json` says; a failure's line where the code is not 0."""

    def ask(*arguments: str, code: int = 0) -> Any:
        capsys.readouterr()
        assert main(["dlq", *arguments, "--dir", str(config.directory), "--json"]) == code
        captured = capsys.readouterr()
        return json.loads(captured.out) if captured.out else captured.err

    return ask


class TestHistory:
    """The pure part: what a second failure knows of the first."""

    RECORD = Record("scores", 1, 7, b"p.0", b"junk", {names.TRACEPARENT: TRACE}, 1.0)

    def failed(self, record: Record, error: str) -> DeadLetter:
        event = dead_letter(record, "groups", error, 5.0).event
        assert isinstance(event, DeadLetter)
        return event

    def test_a_second_failure_carries_the_first(self) -> None:
        first = self.failed(self.RECORD, "no event")
        again = Record("scores", 1, 9, first.key, first.data, dict(replay_headers(first)), 6.0)
        second = self.failed(again, "still no event")
        assert (first.attempts, second.attempts) == (1, 2)
        assert [(f.source.offset, f.error) for f in history(second)] == [(7, "no event"), (9, "still no event")]
        assert second.headers[names.TRACEPARENT] == TRACE

    def test_the_history_is_bounded(self) -> None:
        record = self.RECORD
        for offset in range(40):
            entry = self.failed(record, "x" * 10_000)
            record = Record("scores", 1, offset, entry.key, entry.data, dict(replay_headers(entry)), 6.0)
        assert entry.attempts == 40
        assert sum(len(value) for value in record.headers.values()) < 16_000

    @pytest.mark.parametrize("nonsense", [b"", b"\xff", b"[" * 100_000, b'[{"source": 1}]', b"null", b"{}"])
    def test_nonsense_in_the_headers_is_no_history(self, nonsense: bytes) -> None:
        headers = {names.DLQ_ATTEMPTS: nonsense, names.DLQ_HISTORY: nonsense}
        assert failures_before(headers) == ()
        record = Record("scores", 1, 7, None, b"junk", headers, 1.0)
        assert self.failed(record, "no event").attempts == 1


def score(index: int, **fields: Any) -> RolloutScored:
    """A score of a group of two; index 2 is one too many."""
    defaults: dict[str, Any] = {"reward": float(index), "passed": float(index), "deadline_s": time.time() + 3600}
    return rollout_scored(
        "p.0",
        index,
        rollout=Ref("rollouts", partition_of("p.0", PARTITIONS), index),
        time_s=time.time(),
        **defaults | fields,
    )


def write(config: RunConfig, bootstrap: str, topic: str, *values: bytes, partition: int = 0) -> None:
    producer = KafkaProducer(bootstrap_servers=bootstrap, acks="all")
    for value in values:
        headers = [(names.TRACEPARENT, TRACE)]
        producer.send(TOPICS[topic].on(config.run.id), value, b"p.0", headers=headers, partition=partition)
    producer.flush(timeout=30)
    producer.close()


def aggregate(config: RunConfig, bootstrap: str, until: Callable[[RunLog], bool]) -> None:
    """Run the real aggregator until the log says that it did its work."""
    log = RunLog(bootstrap, config.run.id)

    async def serve() -> None:
        client = log_at(bootstrap, config.run.id, PARTITIONS)
        async with asyncio.timeout(60), service_of(client, config.directory, "groups") as service:
            running = service.spawn(groups.main(service, GroupSettings()), "groups")
            while not await asyncio.to_thread(until, log):
                await asyncio.sleep(0.05)
            service.stopping.set()
            await running

    asyncio.run(serve())


def written_dead_letters(log: RunLog) -> list[DeadLetter]:
    return [event for event, _ in log.events("dead-letters") if isinstance(event, DeadLetter)]


def test_a_dead_letter_from_failure_to_purge(config: RunConfig, bootstrap: str, dlq: Ask) -> None:
    """Refused, listed, shown, put back, refused again with its history, put back for good, purged."""
    partition = partition_of("p.0", PARTITIONS)
    bad = encode(score(2))
    write(config, bootstrap, "scores", b"\xc1 not an event", bad, partition=partition)
    aggregate(config, bootstrap, lambda log: len(written_dead_letters(log)) == 2)

    junk, wrong = dlq("list")["dead_letters"]
    assert junk["id"] == f"scores/{partition}@0" and wrong["id"] == f"scores/{partition}@1"
    assert (wrong["stage"], wrong["attempts"], wrong["bytes"], wrong["key"]) == ("groups", 1, len(bad), "p.0")
    assert "has index 2 in a group of 2 samples" in wrong["error"]
    assert dlq("list", "--topic", "rollouts")["dead_letters"] == []

    shown = dlq("show", wrong["id"])
    assert base64.b64decode(shown["data_base64"]) == bad
    assert shown["original"]["event"] == "RolloutScored"
    assert base64.b64decode(shown["headers_base64"][names.TRACEPARENT]) == TRACE

    back = dlq("replay", wrong["id"], junk["id"])["replayed"]
    assert set(back) == {junk["id"], wrong["id"]}
    refusal = dlq("replay", wrong["id"], code=1)
    assert refusal == f"eachprompt: dead letter {wrong['id']} was replayed already, as {back[wrong['id']]}\n"

    aggregate(config, bootstrap, lambda log: len(written_dead_letters(log)) == 4)
    second = {entry["id"]: entry for entry in dlq("list")["dead_letters"]}
    assert set(second) == set(back.values())
    again = dlq("show", back[wrong["id"]])
    assert again["attempts"] == 2
    assert [failure["source"] for failure in again["history"]] == [wrong["id"], back[wrong["id"]]]
    assert base64.b64decode(again["data_base64"]) == bad
    assert base64.b64decode(again["key_base64"]) == b"p.0"
    assert base64.b64decode(again["headers_base64"][names.TRACEPARENT]) == TRACE
    everything = dlq("list", "--all")["dead_letters"]
    assert [entry["state"] for entry in everything].count("replayed") == 2

    assert dlq("purge", "--older-than", "1h", "--yes")["purged"] == 0
    assert dlq("purge") == {"run": "demo", "purged": 0, "would_purge": 4}
    assert len(dlq("list")["dead_letters"]) == 2
    assert dlq("purge", "--yes")["purged"] == 4
    assert dlq("list")["dead_letters"] == []
    assert {entry["state"] for entry in dlq("list", "--all")["dead_letters"]} <= {"purged", "replayed"}
    assert "was purged" in dlq("replay", back[wrong["id"]], code=1)
    assert sum(len(event.data) for event in written_dead_letters(RunLog(bootstrap, config.run.id))) == 0


def test_a_purged_dead_letter_still_disposes_of_its_rollout(config: RunConfig, bootstrap: str, dlq: Ask) -> None:
    log = RunLog(bootstrap, config.run.id)
    write(config, bootstrap, "rollouts", b"not a rollout")
    entry = dead_letter(Record("rollouts", 0, 0, b"p.9", b"not a rollout", {}, 1.0), "rewards", "no event", 2.0)
    write(config, bootstrap, "dead-letters", encode(entry.event))
    assert dlq("list", "--stage", "rewards")["dead_letters"][0]["id"] == "rollouts/0@0"
    before = audit_of(log)
    assert before.dispositions["dead_letter"] == before.produced == 1
    assert dlq("purge", "--yes")["purged"] == 1
    assert audit_of(log) == before
    assert dlq("purge", "--yes")["purged"] == 0
    assert audit_of(log) == before


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["show", "rolouts/0@1"], 2, "id is 'rolouts/0@1'; allowed: TOPIC/PARTITION@OFFSET"),
        (["show", "rollouts/0@x"], 2, "id is 'rollouts/0@x'; allowed: "),
        (["show", "rollouts/1@77"], 1, "there is no dead letter rollouts/1@77; `eachprompt dlq list` names"),
        (["list", "--topic", "scrolls"], 2, "--topic is 'scrolls'; allowed: prompts, rollouts"),
        (["purge", "--older-than", "week"], 2, "--older-than is 'week'; allowed: a number and one of s, m, h, d"),
    ],
)
def test_what_is_wrong_is_one_line(arguments: list[str], code: int, line: str, dlq: Ask) -> None:
    said = dlq(*arguments, code=code)
    assert said.startswith(f"eachprompt: {line}")
    assert len(said.splitlines()) == 1


def test_the_runs_broker_is_started_where_it_is_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The tools work on a run that has ended: the dead letters are read from its broker's directory."""
    directory = tmp_path / "run"
    config = load(DEMO, directory=directory, overrides=["broker.kind=embedded", "run.partitions=2"])
    adopt(config)
    with open_broker(config.broker.build(), directory) as broker:
        create_run_topics(config, broker.bootstrap)
        entry = dead_letter(Record("prompts", 1, 3, b"p.9", b"junk", {}, 1.0), "producer", "no event", 2.0)
        write(config, broker.bootstrap, "dead-letters", encode(entry.event))
    capsys.readouterr()
    assert main(["dlq", "list", "--dir", str(directory)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("prompts/1@3  producer") and lines[-1] == "1 dead letters in run demo"
    assert main(["dlq", "show", "prompts/1@3", "--dir", str(directory)]) == 0
    assert "6a 75 6e 6b" in capsys.readouterr().out
