"""The broker of a run is kept alive as its services are, and outlives an outage that is not its fault."""

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from deploy.cli.commands.demo import DEMO
from deploy.cli.commands.run import bootstrap_of
from deploy.config.run import RunConfig, load
from deploy.errors import ConfigError
from deploy.local.restarts import RestartPolicy
from deploy.local.session import Session
from deploy.local.supervisor import GaveUpError
from streams.broker import find_endpoint
from streams.broker.endpoint import broker_pid_file
from streams.processes.child import running_pid, stop_pid
from tests.builders import until

DEADLINE_S = 60.0
FAILURES = 3
OVERRIDES = [
    'broker.kind="embedded"',
    "supervisor.backoff_first_s=0.01",
    "supervisor.backoff_max_s=0.02",
    f"supervisor.quick_failures={FAILURES}",
]


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return load(DEMO, directory=tmp_path / "run", overrides=OVERRIDES)


async def kill_brokers(config: RunConfig, times: int) -> None:
    """Each as soon as it is ready; the one after the last is left alive."""
    for _ in range(times):
        killed = running_pid(broker_pid_file(config.directory))
        assert killed is not None
        await asyncio.to_thread(stop_pid, killed, 0.0)
        await until("for the next broker", lambda killed=killed: is_up(config, killed))  # type: ignore[misc]


def is_up(config: RunConfig, before: int) -> bool:
    """Whether another broker than process `before` serves."""
    endpoint = find_endpoint(config.directory)
    return endpoint is not None and endpoint.pid != before


async def test_a_run_under_nohup_outlives_its_terminal(config: RunConfig) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        async with Session(config, note=lambda said: None) as session:
            os.kill(os.getpid(), signal.SIGHUP)
            await asyncio.sleep(0)
            assert not session.stopping.is_set()
            os.kill(os.getpid(), signal.SIGTERM)
            async with asyncio.timeout(DEADLINE_S):
                await session.stopping.wait()
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_stops_the_run_though_nobody_can_be_told(config: RunConfig, number: signal.Signals) -> None:
    """The terminal is closed: what is written there raises, and the run would have to be killed."""

    def closed(said: str) -> None:
        raise OSError(5, "Input/output error", said)

    # The tests themselves may be in the background or under nohup, where two of the three are ignored.
    before = signal.signal(number, signal.SIG_DFL)
    try:
        async with Session(config, note=closed) as session:
            os.kill(os.getpid(), number)
            async with asyncio.timeout(DEADLINE_S):
                await session.stopping.wait()
    finally:
        signal.signal(number, before)


async def test_a_broker_that_dies_again_and_again_ends_the_run(config: RunConfig) -> None:
    async with Session(config, note=lambda said: None) as session:
        with pytest.raises(
            GaveUpError, match=rf"gave up on the broker after {FAILURES} quick failures: the broker ended"
        ):
            await session.serve(kill_brokers(config, FAILURES + 1), services=[])


async def test_a_broker_that_somebody_kills_is_started_again_at_once_however_often(config: RunConfig) -> None:
    """Each time it had been at work: that it does not survive is no fault of its own."""
    often = replace(config, supervisor=msgspec.structs.replace(config.supervisor, quick_failure_s=1e-6))
    notes: list[str] = []
    async with Session(often, note=notes.append) as session:
        await session.serve(kill_brokers(often, RestartPolicy.deaths + 2), services=[])
    ends = [note for note in notes if note.startswith("the broker ended")]
    assert len(ends) == RestartPolicy.deaths + 2
    assert all(note.endswith("; starting it again at once") for note in ends)


async def test_while_a_disk_is_full_the_broker_is_started_again_for_as_long_as_it_takes(config: RunConfig) -> None:
    notes: list[str] = []
    config.directory.mkdir()
    # A file where a directory should be: it cannot be written below it, as on a full disk.
    (config.directory / "checkpoints").touch()
    async with Session(config, note=notes.append) as session:
        address = session.bootstrap
        await session.serve(kill_brokers(config, 2 * FAILURES), services=[])
        assert session.bootstrap == address
    ends = [note for note in notes if note.startswith("the broker ended")]
    assert len(ends) == 2 * FAILURES
    assert f"; the cause lies outside ({config.directory}/checkpoints cannot be written: " in ends[0]


async def test_a_service_that_is_kept_alive_waits_for_the_broker_and_one_alone_refuses(config: RunConfig) -> None:
    async with Session(config, note=lambda said: None) as session:
        address = session.bootstrap
        assert bootstrap_of(config) == bootstrap_of(config, kept_up=True) == address
    assert bootstrap_of(config, kept_up=True) == address
    with pytest.raises(
        ConfigError, match=r"is not up, and a service alone does not start it; allowed: `eachprompt up "
    ):
        bootstrap_of(config)
