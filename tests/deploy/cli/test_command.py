"""The command as a user runs it: help, exit codes, one line for what is wrong."""

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaProducer

from analysis.history.run_log import RunLog
from deploy.cli.commands.demo import DEMO
from deploy.cli.main import SUBCOMMANDS, main
from deploy.config.kept import adopt
from deploy.config.run import RunConfig, load
from deploy.local.session import create_run_topics
from schemas import TOPICS
from streams.broker import open_broker
from streams.record import Record

TIMEOUT_S = 60


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


Command = Callable[..., Done]


@pytest.fixture
def eachprompt(capsys: pytest.CaptureFixture[str]) -> Command:
    """The command, run in this process."""

    def run(*arguments: str) -> Done:
        capsys.readouterr()
        try:
            code = main(arguments)
        except SystemExit as ended:
            code = int(ended.code or 0)
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return run


@pytest.mark.parametrize("subcommand", SUBCOMMANDS)
def test_every_subcommand_explains_itself(subcommand: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([subcommand, "--help"])
    assert ended.value.code == 0
    assert f"usage: eachprompt {subcommand}" in capsys.readouterr().out


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from deploy.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch','vllm','kafka','aiokafka','numpy','msgspec','rich'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=TIMEOUT_S, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(name in done.stdout for name in SUBCOMMANDS)


@pytest.mark.parametrize("service", ["dispatcher", "rewards", "groups", "batches"])
def test_the_settings_of_light_services_import_no_torch(service: str) -> None:
    program = (
        "import sys; from deploy.config.run import load; from deploy.cli.commands.demo import DEMO\n"
        "import deploy.cli.commands.run; from deploy.services import main_of\n"
        f"load(DEMO).service({service!r}); main_of({service!r})\n"
        "print(sorted({'torch','vllm'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=TIMEOUT_S, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["dance"], "eachprompt: argument SUBCOMMAND: invalid choice: 'dance'"),
        (["run", "learnr"], "eachprompt run: argument service: invalid choice: 'learnr'"),
        (["demo", "--steps", "x"], "eachprompt demo: argument --steps: invalid int value: 'x' (see"),
        (["demo", "--steps", "0"], "eachprompt: --steps is 0; allowed: an integer of at least 1"),
        (
            ["demo", "--set", "run.stesp=1"],
            "eachprompt: run.stesp is 1, but there is no such key; did you mean run.steps?",
        ),
        (
            ["up"],
            "eachprompt: neither a configuration nor a run directory is given; allowed: -c FILE.toml or --dir DIR",
        ),
        (["show", "rolouts", "--dir", "x"], "eachprompt: topic is 'rolouts'; allowed: prompts, rollouts, scores"),
        (["show", "rollouts/a", "--dir", "x"], "eachprompt: place is 'rollouts/a'; allowed: TOPIC, TOPIC/PARTITION or"),
        (["up", "-c", str(DEMO), "--set", "model.path=none"], "eachprompt: model.path is "),
    ],
)
def test_usage_errors_are_one_line_and_exit_code_2(
    arguments: list[str], line: str, eachprompt: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = eachprompt(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(line)
    assert list(tmp_path.iterdir()) == []


def test_the_demo_refuses_a_directory_that_is_not_empty(eachprompt: Command, tmp_path: Path) -> None:
    (tmp_path / "old").touch()
    done = eachprompt("demo", "--dir", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr == (
        f"eachprompt: --dir is {tmp_path}, which is not empty; allowed: a new directory, for the demo starts afresh\n"
    )


def test_a_service_without_its_broker_says_so(eachprompt: Command, tmp_path: Path) -> None:
    done = eachprompt("run", "groups", "-c", str(DEMO), "--dir", str(tmp_path))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(
        f"eachprompt: the broker of {tmp_path} is not up, and a service alone does not start it; allowed: `eachprompt "
    )


def test_an_external_broker_that_is_not_there_ends_a_tool(eachprompt: Command, tmp_path: Path) -> None:
    overrides = ("broker.kind=external", 'broker.bootstrap_servers="127.0.0.1:1"', "supervisor.broker_s=1")
    arguments = [argument for override in overrides for argument in ("--set", override)]
    done = eachprompt("topics", "-c", str(DEMO), "--dir", str(tmp_path), *arguments)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("eachprompt: ")
    assert "127.0.0.1:1" in done.stderr.splitlines()[-1]


def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        arguments = ["--set", f"broker.port={port}", "--set", "broker.kind=embedded"]
        argv = [sys.executable, "-P", "-m", "deploy.cli.main", "up", "-c", str(DEMO), "--dir", str(tmp_path / "run")]
        done = subprocess.run([*argv, *arguments], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 1
    expected = f"eachprompt: port {port} of 127.0.0.1 is in use; set broker.port to another one, or to 0 for a free one"
    assert done.stderr.splitlines()[-1] == expected
    assert not list((tmp_path / "run").glob("pids/*"))


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory: pytest.TempPathFactory, simulated: Callable[..., Any]) -> Iterator[RunConfig]:
    """A whole run's records on a real broker that is up."""
    directory = tmp_path_factory.mktemp("tools") / "run"
    overrides = ["broker.kind=embedded", "run.partitions=2", "run.steps=3"]
    config = load(DEMO, directory=directory, overrides=overrides)
    adopt(config)
    broker = open_broker(config.broker.build(), directory)
    with broker:
        create_run_topics(config, broker.bootstrap)
        producer = KafkaProducer(bootstrap_servers=broker.bootstrap, acks="all")
        for ref, value in simulated(steps=3).records:
            key = str(ref.offset).encode()
            producer.send(TOPICS[ref.topic].on(config.run.id), value, key, partition=ref.partition)
        producer.flush(timeout=30)
        producer.close()
        yield config


AsJson = Callable[..., dict[str, Any]]


@pytest.fixture
def as_json(run_directory: RunConfig, eachprompt: Command) -> AsJson:
    """What a tool says of that run with --json."""

    def ask(*arguments: str) -> dict[str, Any]:
        done = eachprompt(*arguments, "--dir", str(run_directory.directory), "--json")
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == 1
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    return ask


def test_audit_prints_the_audit_alone(as_json: AsJson) -> None:
    audit = as_json("audit")
    assert audit["unaccounted"] == audit["trained_twice"] == audit["in_flight"] == 0
    assert audit["produced"] == sum(audit["dispositions"].values())
    assert audit["dispositions"]["trained"] == 48
    assert as_json("audit", "--since", "1h") == audit
    assert as_json("audit", "--until", "1h")["produced"] == 0
    assert as_json("audit", "--until", "2h")["produced"] == 0


def test_audit_fails_where_a_rollout_is_lost(
    run_directory: RunConfig, eachprompt: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log without its last rollouts: scores name what is not there."""
    read = RunLog.read

    def without_last(log: RunLog, topic: str, **window: Any) -> Iterator[Record]:
        records = list(read(log, topic, **window))
        return iter(records[:-2] if topic == "rollouts" else records)

    monkeypatch.setattr(RunLog, "read", without_last)
    done = eachprompt("audit", "--dir", str(run_directory.directory))
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert sum(line.startswith("unaccounted: ") and "is not on the log" in line for line in lines) == 2


def test_topics_counts_records(as_json: AsJson) -> None:
    topics = {topic["name"]: topic for topic in as_json("topics")["topics"]}
    assert set(topics) == set(TOPICS)
    assert topics["steps"]["offsets"] == 3
    assert topics["rollouts"]["partitions"] == 2
    assert topics["rollouts"]["lag"] == topics["rollouts"]["offsets"]
    assert topics["prompts"]["reader"] == "producer"
    # The aggregator commits the requests too, as their groups end.
    assert topics["prompts"]["lags"] == {"producer": topics["prompts"]["lag"], "groups": topics["prompts"]["lag"]}


def test_trace_tells_every_hop(as_json: AsJson) -> None:
    hops = as_json("trace")["hops"]
    assert hops[0]["name"] == "prompt requested → rollout completed"
    assert hops[-1]["name"] == "end to end: requested → weights applied"
    assert hops[-1]["count"] == 48


def test_status_without_services(as_json: AsJson) -> None:
    status = as_json("status")
    assert status["steps"] == 3
    assert set(status["services"].values()) == {None}
    assert status["lag"]["prompts"] > 0
    assert status["lags"]["prompts"] == dict.fromkeys(("producer", "groups"), status["lag"]["prompts"])
    assert status["lags"]["scores"] == {"groups": status["lag"]["scores"]}


def test_status_of_a_run_that_is_not_up_is_no_list_of_stalls(
    run_directory: RunConfig, eachprompt: Command, as_json: AsJson
) -> None:
    """It said of every service that it is not running, and of a run that had done its steps that it waits."""
    directory = str(run_directory.directory)
    said = eachprompt("status", "--dir", directory).stdout
    assert "not up; finished: the last step is done\n" in said and "stalled" not in said
    assert as_json("status")["stalls"] == [] and as_json("status")["finished"] is True
    said = eachprompt("status", "--dir", directory, "--set", "run.steps=30").stdout
    assert f"not up; eachprompt up --dir {directory} continues it\n" in said and "stalled" not in said


def test_show_decodes_a_record(as_json: AsJson, run_directory: RunConfig, eachprompt: Command) -> None:
    newest = as_json("show", "rollouts")
    assert newest["event"] == "RolloutCompleted"
    assert newest["response_ids"].startswith("u4[")
    assert newest["response_text"]
    assert as_json("show", "steps/0/1")["batch_ref"] == "batches/0/1"
    missing = eachprompt("show", "steps/0/99", "--dir", str(run_directory.directory))
    assert missing.returncode == 1
    assert missing.stderr == "eachprompt: there is no record at steps/0/99 of run demo\n"


def test_doctor_reports_each_finding(run_directory: RunConfig, eachprompt: Command) -> None:
    done = eachprompt("doctor", "--dir", str(run_directory.directory), "--json")
    report = json.loads(done.stdout)
    names = {check["name"] for check in report["checks"]}
    assert {"python", "torch", "amx", "memory", "disk", "kafka", "broker", "port", "configuration"} <= names
    assert all(check["fix"] for check in report["checks"] if check["level"] != "ok")
    assert done.returncode == (1 if report["blocks"] else 0)
