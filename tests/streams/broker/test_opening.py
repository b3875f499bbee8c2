"""Settings, the choice of a broker, its address in the run directory, and the errors a user sees."""

from __future__ import annotations

import base64
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.broker import Broker, BrokerError, BrokerSettings, choose_kind, find_endpoint, open_broker, running_broker
from streams.broker.external import ExternalBroker
from streams.broker.install import resolve_jars
from streams.broker.jars import JARS_VARIABLE, find_jars, jars_directory, java_version, kafka_obstacle
from streams.broker.kafka import random_cluster_id, server_properties, write_properties
from streams.broker.local import LocalBroker
from streams.broker.opening import EXTERNAL_S
from streams.broker.ports import free_port, is_free
from streams.broker.ready import parse_bootstrap, wait_ready
from streams.errors import ConfigurationError
from streams.processes.child import running_pid

pytestmark = pytest.mark.timeout(180)

EMBEDDED = BrokerSettings(kind="embedded", ephemeral=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "redis"}, "broker.kind is 'redis'; allowed are auto, kafka, embedded, external"),
        ({"port": 70_000}, "broker.port is 70000; allowed are 0"),
        ({"heap_mib": 16}, "broker.heap_mib is 16; at least 128"),
        ({"message_max_bytes": 5}, "broker.message_max_bytes is 5; allowed are 1048576 to"),
        ({"kind": "external"}, "'external' needs broker.bootstrap_servers"),
        ({"kind": "kafka", "bootstrap_servers": "a:1"}, "only 'external' takes it"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        BrokerSettings(**settings)


def test_bootstrap_servers_are_host_and_port() -> None:
    assert parse_bootstrap("a:1, b.example:9092,[::1]:3") == [("a", 1), ("b.example", 9092), ("::1", 3)]
    for wrong in ("a", "a:", ":9", "a:x", "a:0", "a:65536", "a:1,,b:2"):
        with pytest.raises(BrokerError, match="is not host:port"):
            parse_bootstrap(wrong)


def test_the_embedded_broker_wants_a_word_that_its_data_may_be_lost(tmp_path: Path) -> None:
    with pytest.raises(BrokerError, match=r"is ephemeral: .*loses acknowledged records.*broker.ephemeral = true"):
        open_broker(BrokerSettings(kind="embedded"), tmp_path)


def test_auto_falls_back_to_the_embedded_broker_and_says_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = BrokerSettings(java="no-such-java", ephemeral=True)
    assert choose_kind(settings, tmp_path)[0] == "embedded"
    with caplog.at_level("INFO"):
        assert open_broker(settings, tmp_path).kind == "embedded"
    assert caplog.messages == [
        "broker: embedded, because Apache Kafka cannot run: Java 17+ was not found (broker.java is 'no-such-java')"
    ]
    with pytest.raises(BrokerError, match=r"Kafka cannot run: Java 17.*; the embedded broker is ephemeral"):
        open_broker(BrokerSettings(java="no-such-java"), tmp_path)


def test_kafka_says_what_it_lacks(tmp_path: Path) -> None:
    settings = BrokerSettings(kind="kafka", java=sys.executable)
    assert "was not found" in str(kafka_obstacle(settings)), "a program that is no Java"
    if java_version() is None:
        pytest.skip("no Java here")
    settings = BrokerSettings(kind="kafka", jars=tmp_path / "empty")
    with pytest.raises(BrokerError, match=f"its jars are not in {tmp_path}/empty"):
        open_broker(settings, tmp_path / "run").start(5)


def test_where_jars_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(JARS_VARIABLE, str(tmp_path))
    assert jars_directory() == tmp_path
    assert jars_directory(tmp_path / "set") == tmp_path / "set"
    (tmp_path / "other.jar").touch()
    assert find_jars() == []
    (tmp_path / "kafka_2.13-4.4.0.jar").touch()
    assert [jar.name for jar in find_jars()] == ["kafka_2.13-4.4.0.jar", "other.jar"]
    assert resolve_jars() == tmp_path, "what is there is not downloaded again"
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BrokerError, match="`mvn`"):
        resolve_jars(tmp_path / "missing")


def test_a_directory_keeps_its_kind_and_port(tmp_path: Path) -> None:
    broker = open_broker(EMBEDDED, tmp_path)
    with pytest.raises(BrokerError, match="has not been started"):
        _ = broker.bootstrap
    with broker:
        address = broker.bootstrap
    assert choose_kind(BrokerSettings(ephemeral=True), tmp_path)[0] == "embedded", "also where Kafka could run"
    with pytest.raises(BrokerError, match=r"holds the topics of another kind, embedded, but broker\.kind is 'kafka'"):
        open_broker(BrokerSettings(kind="kafka"), tmp_path)
    with open_broker(EMBEDDED, tmp_path) as again:
        assert again.bootstrap == address


@pytest.mark.parametrize("kind", ["kafka", "embedded"])
def test_a_port_in_use_is_named(tmp_path: Path, kind: Any) -> None:
    if kind == "kafka" and kafka_obstacle(BrokerSettings(kind="kafka")):
        pytest.skip("Apache Kafka cannot run")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        settings = BrokerSettings(kind=kind, ephemeral=True, port=port)
        with pytest.raises(BrokerError, match=rf"port {port} of 127.0.0.1 is in use; set broker.port"):
            open_broker(settings, tmp_path).start(5)
    assert not (tmp_path / "pids").exists()


def test_a_configured_port_is_used(tmp_path: Path) -> None:
    port = free_port()
    with open_broker(BrokerSettings(kind="embedded", ephemeral=True, port=port), tmp_path) as broker:
        assert broker.bootstrap == f"127.0.0.1:{port}"
        assert not is_free(port)
    assert is_free(port)


def test_tools_find_a_running_broker_and_start_it_otherwise(tmp_path: Path) -> None:
    assert find_endpoint(tmp_path) is None
    with running_broker(EMBEDDED, tmp_path) as first:
        endpoint = find_endpoint(tmp_path)
        assert endpoint is not None
        assert (endpoint.kind, endpoint.bootstrap) == ("embedded", first)
        assert running_pid(tmp_path / "pids" / "broker.pid") == endpoint.pid
        with running_broker(EMBEDDED, tmp_path) as second:
            assert second == first
        assert find_endpoint(tmp_path) == endpoint, "who did not start it does not stop it"
    assert find_endpoint(tmp_path) is None
    assert not (tmp_path / "pids" / "broker.pid").exists()
    assert (tmp_path / "logs" / "broker.log").stat().st_size > 0


def test_a_run_takes_the_place_of_a_broker_that_a_tool_has_started(tmp_path: Path) -> None:
    """`trace` on a stopped run kept `up` from starting."""
    with running_broker(EMBEDDED, tmp_path) as address:
        lent = find_endpoint(tmp_path)
        with open_broker(EMBEDDED, tmp_path) as own:
            assert isinstance(own, LocalBroker)
            assert lent is not None and own.pid not in (None, lent.pid) and running_pid(lent_file(tmp_path)) == own.pid
            assert own.bootstrap == address, "whoever reads goes on reading there"
            with pytest.raises(BrokerError, match=rf"already run by another process \(process {own.pid}\)"):
                open_broker(EMBEDDED, tmp_path).start(5)
            with running_broker(EMBEDDED, tmp_path) as third:
                assert third == address
            assert own.alive(), "a tool does not end what it has not started"
    assert find_endpoint(tmp_path) is None


def test_the_tool_that_started_the_broker_ends_it_after_the_last_that_reads(tmp_path: Path) -> None:
    alive: list[bool] = []
    first_reads, second_reads = threading.Event(), threading.Event()

    def first() -> None:
        with running_broker(EMBEDDED, tmp_path):
            first_reads.set()
            assert second_reads.wait(60)

    def second() -> None:
        with running_broker(EMBEDDED, tmp_path):
            second_reads.set()
            time.sleep(1.0)  # the first is at its end by now
            alive.append(find_endpoint(tmp_path) is not None)

    one, two = threading.Thread(target=first), threading.Thread(target=second)
    one.start()
    assert first_reads.wait(60)
    two.start()
    one.join(60)
    two.join(60)
    assert alive == [True] and find_endpoint(tmp_path) is None


def test_tools_that_begin_at_the_same_time_share_one_broker(tmp_path: Path) -> None:
    barrier, addresses = threading.Barrier(4), []

    def read() -> None:
        with running_broker(EMBEDDED, tmp_path) as address:
            addresses.append(address)
            barrier.wait(60)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    assert len(addresses) == 4 and len(set(addresses)) == 1


def lent_file(directory: Path) -> Path:
    return directory / "pids" / "broker.pid"


def test_a_killed_broker_is_noticed_and_comes_back(tmp_path: Path) -> None:
    with open_broker(EMBEDDED, tmp_path) as broker:
        assert isinstance(broker, LocalBroker)
        address = broker.bootstrap
        broker.kill()
        assert not broker.alive()
        assert find_endpoint(tmp_path) is None
        broker.start(60)
        assert broker.alive()
        assert broker.bootstrap == address


def test_a_damaged_endpoint_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "broker").mkdir()
    (tmp_path / "broker" / "endpoint.json").write_text("{")
    with pytest.raises(BrokerError, match=r"endpoint.json is damaged"):
        find_endpoint(tmp_path)


def test_a_broker_dies_with_the_process_that_runs_it(tmp_path: Path) -> None:
    source = textwrap.dedent("""
        import sys, threading
        from pathlib import Path
        from streams.broker import BrokerSettings, open_broker

        broker = open_broker(BrokerSettings(kind="embedded", ephemeral=True), Path(sys.argv[1]))
        broker.start(60)
        print(broker.pid, flush=True)
        threading.Event().wait()
    """)
    with subprocess.Popen([sys.executable, "-c", source, str(tmp_path)], stdout=subprocess.PIPE, text=True) as runner:
        assert runner.stdout is not None
        pid = int(runner.stdout.readline())
        process = psutil.Process(pid)
        runner.send_signal(signal.SIGKILL)
        process.wait(30)
    with open_broker(EMBEDDED, tmp_path) as successor:
        assert successor.alive(), "neither the stale pid file nor the lock stands in the way"


def test_a_program_that_fails_gives_its_reason(tmp_path: Path) -> None:
    if kafka_obstacle(BrokerSettings(kind="kafka")):
        pytest.skip("Apache Kafka cannot run")
    broker = open_broker(BrokerSettings(kind="kafka"), tmp_path)
    data = tmp_path / "broker" / "kafka"
    data.mkdir(parents=True)
    (data / "meta.properties").write_text("version=1\nnode.id=99\n")
    with pytest.raises(
        BrokerError, match=r"kafka broker ended with code 1: .*meta\.properties.*\(see .*logs/broker\.log\)$"
    ):
        broker.start(90)
    assert not broker.alive()
    assert not list((tmp_path / "pids").iterdir())


def test_an_external_cluster_that_is_not_there_is_named_by_the_deadline(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    broker = open_broker(BrokerSettings(kind="external", bootstrap_servers=address), tmp_path)
    assert not broker.alive()
    begun = time.monotonic()
    with pytest.raises(BrokerError, match=rf"broker at {address} is not ready after 0.4 s: waiting for a connection"):
        broker.start(0.4)
    assert time.monotonic() - begun < 10


def test_a_tool_does_not_wait_long_for_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a local broker may take to start: nothing is being started there."""
    assert EXTERNAL_S < 10
    monkeypatch.setattr("streams.broker.opening.EXTERNAL_S", 0.3)
    address = f"127.0.0.1:{free_port()}"
    begun = time.monotonic()
    with (
        pytest.raises(BrokerError, match=rf"broker at {address} is not ready after 0\.3 s: .*is the cluster up\?$"),
        running_broker(BrokerSettings(kind="external", bootstrap_servers=address), tmp_path, 60.0),
    ):
        pass
    assert time.monotonic() - begun < 10


def test_an_external_cluster_is_used_and_left_alone(tmp_path: Path, embedded_broker: Broker) -> None:
    settings = BrokerSettings(kind="external", bootstrap_servers=embedded_broker.bootstrap)
    with running_broker(settings, tmp_path) as bootstrap:
        assert bootstrap == embedded_broker.bootstrap
    assert open_broker(settings, tmp_path).alive()
    assert embedded_broker.alive()


def test_readiness_names_what_it_waits_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(BrokerError, match="waiting for an answer to ApiVersions"):
            wait_ready(address, 1.0, lambda _: None)


def test_cluster_ids_are_kafka_uuids() -> None:
    ids = {random_cluster_id() for _ in range(200)}
    assert len(ids) == 200
    for cluster_id in ids:
        assert not cluster_id.startswith("-")
        assert len(base64.urlsafe_b64decode(cluster_id + "==")) == 16


@given(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"])))
def test_properties_survive_escaping(value: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "server.properties"
        write_properties(path, {"key": value})
        written = path.read_bytes().decode("ascii").removeprefix("key=").removesuffix("\n")
    decoded = written.replace("\\\\", "\\u005c").encode().decode("unicode_escape")
    assert decoded.encode("utf-16", "surrogatepass").decode("utf-16") == value


def test_a_path_that_kafka_cannot_take_is_refused() -> None:
    with pytest.raises(BrokerError, match="the path holds a comma"):
        server_properties(BrokerSettings(), Path("/runs/a,b"), 1, 2)


def test_free_ports_are_outside_the_range_of_outgoing_connections() -> None:
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    if first <= 12_000:
        pytest.skip("this machine's outgoing connections use nearly every port")
    assert all(10_000 <= free_port() < first for _ in range(20))


def test_a_wait_for_an_external_cluster_ends_when_it_is_stopped() -> None:
    broker = ExternalBroker(BrokerSettings(kind="external", bootstrap_servers=f"127.0.0.1:{free_port()}"))
    stopping = threading.Timer(0.3, broker.stop)
    stopping.start()
    began = time.monotonic()
    with pytest.raises(BrokerError, match="was stopped"):
        broker.start(deadline_s=30)
    stopping.join()
    assert time.monotonic() - began < 10
