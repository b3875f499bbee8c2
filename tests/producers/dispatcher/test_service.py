"""The dispatcher on a real log: restarts, fencing, and what it costs to start."""

import asyncio
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from producers.dispatcher.service import load_prompts, main
from producers.dispatcher.settings import DispatcherSettings
from producers.dispatcher.sources import JsonlSource, SourceError
from schemas import DeadLetter, Event, GroupRequested, Ref, encode
from streams.broker import Broker
from streams.errors import FencedError
from streams.log.transaction import TransactionalWriter
from streams.record import Output, Record
from tests.brokers import KAFKA
from tests.builders import group_dropped

Found = list[tuple[Event, Record]]


@pytest.fixture(params=["embedded", KAFKA])
def log_broker(request: pytest.FixtureRequest) -> Broker:
    """Both local brokers: what is transactional here must be so on the broker that production runs on."""
    found: Broker = request.getfixturevalue(f"{request.param}_broker")
    return found


def source(path: Path, count: int, prefix: str = "") -> JsonlSource:
    rows = ({"prompt": f"{prefix}{i}=", "verifier": "exact_match", "reference": str(i)} for i in range(count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return JsonlSource(path=str(path))


@pytest.fixture
def settings(tmp_path: Path) -> DispatcherSettings:
    return DispatcherSettings(
        source=source(tmp_path / "train.jsonl", 20),
        held_back=source(tmp_path / "held.jsonl", 3, "h"),
        groups_per_batch=2,
        max_staleness=1,
        samples=2,
    )


def requests(found: Found) -> list[GroupRequested]:
    return [event for event, _ in found if isinstance(event, GroupRequested)]


def drop(request: GroupRequested) -> Output:
    event = group_dropped(
        request.group_id, prompt_id=request.prompt_id, task=request.task, reason="expired", time_s=time.time()
    )
    return Output("groups", event, key=request.group_id)


async def test_a_freed_slot_is_filled_and_a_restart_asks_for_nothing_twice(
    run: Any, settings: DispatcherSettings
) -> None:
    async with run.service("dispatcher") as service:
        serving = service.spawn(main(service, settings), "dispatcher")
        first = requests(await run.read("prompts", until=lambda found: len(found) == 3 + 4))
        assert [request.purpose for request in sorted(first, key=lambda r: r.sequence)] == ["evaluate"] * 3 + [
            "train"
        ] * 4
        training = [request for request in first if request.purpose == "train"]
        await run.write(drop(training[0]))
        await run.read("prompts", until=lambda found: len(found) == 8)
        service.stopping.set()
        await serving
    await run.write(drop(training[1]), drop(training[2]))
    async with run.service("dispatcher") as service:
        service.spawn(main(service, settings), "dispatcher")
        found = requests(await run.read("prompts", until=lambda found: len(found) == 10))
        # Others may read what it wrote before it has heard of that itself.
        async with asyncio.timeout(60):
            while not (service.is_ready and service.gauges.get("outstanding_groups") == 4):
                await asyncio.sleep(0.01)
    assert sorted(request.sequence for request in found) == list(range(10))
    assert len({request.group_id for request in found}) == 10


async def test_a_predecessor_that_still_runs_is_fenced(run: Any, settings: DispatcherSettings) -> None:
    old = TransactionalWriter(run.log, f"{run.context.run}.dispatcher")
    await old.open()
    async with run.service("dispatcher") as service:
        service.spawn(main(service, settings), "dispatcher")
        found = requests(await run.read("prompts", until=lambda found: len(found) == 7))
        with pytest.raises(FencedError):
            await old.write([Output("prompts", found[0], key=found[0].group_id)])
    await old.close()


async def test_a_refused_prompt_is_replaced(run: Any, settings: DispatcherSettings) -> None:
    async with run.service("dispatcher") as service:
        service.spawn(main(service, settings), "dispatcher")
        found = requests(await run.read("prompts", until=lambda found: len(found) == 7))
        refused = next(request for request in found if request.purpose == "train")
        dead = DeadLetter(
            source=Ref("prompts", 0, 0), stage="producer", error="too long", data=encode(refused), time_s=time.time()
        )
        await run.write(Output("dead-letters", dead))
        await run.read("prompts", until=lambda found: len(found) == 8)


def test_a_source_that_is_held_back_entirely_is_refused(tmp_path: Path) -> None:
    same = source(tmp_path / "same.jsonl", 3)
    with pytest.raises(SourceError, match="no prompt is left to train on"):
        load_prompts(DispatcherSettings(source=same, held_back=same))


def lines_of(run: Any) -> list[str]:
    lines: list[str] = run.log_of("dispatcher").read_text().splitlines()
    return lines


async def test_it_starts_fast_and_small_and_ends_with_zero_on_sigterm(run: Any, tmp_path: Path) -> None:
    train = source(tmp_path / "train.jsonl", 2048)
    process = run.launch("dispatcher", {"source": {"kind": "jsonl", "path": train.path}, "groups_per_batch": 16})
    try:
        await run.read("prompts", until=lambda found: len(found) == 32)
        watched = psutil.Process(process.pid)
        resident_mib = watched.memory_info().rss / 2**20
        # Of the processor, and not by the clock: other tests' processes want it too.
        spent = watched.cpu_times()
        took_s = spent.user + spent.system
        os.kill(process.pid, signal.SIGTERM)
        await asyncio.to_thread(process.wait, timeout=60)
    finally:
        process.kill()
    print(f"dispatcher: 32 requests on the log for {took_s:.2f} s of CPU since its start, {resident_mib:.0f} MiB")
    assert process.returncode == 0, lines_of(run)
    assert lines_of(run)[-1] == "imported", "neither torch nor vLLM"
    assert resident_mib <= 120
    # 0.3 s where this was written; the margin is for a slower processor.
    assert took_s <= 4


async def test_a_broken_source_ends_it_with_code_2_and_one_sentence(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text('{"prompt": "1+1="\n')
    process = run.launch("dispatcher", {"source": {"kind": "jsonl", "path": str(path)}})
    assert await asyncio.to_thread(process.wait, timeout=60) == 2
    *_, last, imported = lines_of(run)
    assert f"{path}, line 1" in last and imported == "imported"
