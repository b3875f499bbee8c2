"""The cause of an end is what the service said, and not what was printed after it on the way out."""

import asyncio
from pathlib import Path

import pytest

from deploy.local import supervisor as module
from deploy.local.causes import LOWER, cause_of, killed_for_memory
from deploy.local.supervisor import Supervisor
from schemas.services import SERVICES
from tests.builders import until
from tests.deploy.local.small_programs import POLICY, unit

SAID = "2026-12-01 12:49:09,596 ERROR streams.runtime.service: groups: BrokerAwayError: waited 30.1 s for records"
NOISE = (
    "Exception ignored in: <function AIOKafkaConsumer.__del__ at 0x7f4809a0dbc0>",
    "TypeError: 'NoneType' object is not callable",
    "2026-12-01 12:49:10,101 INFO vllm.v1.engine: Shutting down the engine core",
)


@pytest.mark.parametrize(
    ("lines", "cause"),
    [
        ((SAID,), "BrokerAwayError: waited 30.1 s for records"),
        ((SAID, *NOISE), "BrokerAwayError: waited 30.1 s for records"),
        (("2026-12-01 12:49:09,596 ERROR vllm.engine: out of room", " "), "out of room"),
        (("Traceback (most recent call last):", "ImportError: no torch"), "ImportError: no torch"),
        ((), "it logged nothing"),
        (("é" * 500,), "é" * 400),
    ],
)
def test_the_cause_in_a_log(tmp_path: Path, lines: tuple[str, ...], cause: str) -> None:
    log = tmp_path / "svc.log"
    log.write_text("".join(f"{line}\n" for line in lines))
    assert cause_of(log) == cause
    assert cause_of(log, since=log.stat().st_size) == "it logged nothing", (
        "what an earlier process said is not this one's"
    )


def test_a_log_that_is_not_there(tmp_path: Path) -> None:
    assert cause_of(tmp_path / "none.log") == "it wrote no log"


def test_every_service_has_something_to_lower() -> None:
    assert LOWER.keys() == {*SERVICES, "broker"}
    assert "producer.kv_cache_bytes" in killed_for_memory("producer")


async def test_a_service_that_was_killed_for_memory_is_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = iter([3, 4])
    monkeypatch.setattr(module, "memory_kills", lambda: next(counted, 4))
    notes: list[str] = []
    program = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    supervisor = Supervisor([unit(tmp_path, "rewards", program)], POLICY, stop_s=5, note=notes.append)
    stopping = asyncio.Event()
    keeping = asyncio.create_task(supervisor.keep(stopping))
    await until("for two ends", lambda: supervisor.restarts["rewards"] >= 2)
    stopping.set()
    await keeping
    killed, again = notes[:2]
    assert "ended with signal 9: the kernel killed it for want of memory; lower rewards.pool_size" in killed
    assert "memory" not in again, "somebody else's SIGKILL is none of the kernel's"


async def test_one_kill_of_the_kernel_explains_one_of_two_services_that_were_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each was compared with the count at its own start, so that both were told to need less memory."""
    kills = 0
    monkeypatch.setattr(module, "memory_kills", lambda: kills)
    notes: list[str] = []
    waits = "import time; time.sleep(60)"
    units = [unit(tmp_path, name, waits) for name in ("rewards", "groups")]
    supervisor = Supervisor(units, POLICY, stop_s=5, note=notes.append)
    stopping = asyncio.Event()
    keeping = asyncio.create_task(supervisor.keep(stopping))
    await until("for both", lambda: len(supervisor._living()) == 2)
    kills = 1
    for child in supervisor._living():
        child.kill()
    await until("for two ends", lambda: len(notes) >= 2)
    stopping.set()
    await keeping
    assert sum("the kernel killed it" in note for note in notes[:2]) == 1, notes
