"""The producer with a real engine on a real log: prompts in, rollouts out, weights changed under them, killed."""

import asyncio
import contextlib
import json
import os
import re
import signal
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from producers.rollouts.prompt_encoder import PromptEncoder
from schemas import (
    CanaryScored,
    DeadLetter,
    GroupRequested,
    RolloutCompleted,
    WeightsApplied,
    WeightsRefused,
    decode,
)
from tests.producers.rollouts.engine_run import (
    CANARY,
    KILLER,
    MODEL,
    REPEATED,
    SAMPLES,
    SETTINGS,
    START_S,
    Found,
    ask,
    check,
    has_applied,
    has_refused,
    has_scored,
    holds,
    of,
    publish,
    request,
)

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]


@pytest.fixture
def perturbed(tmp_path: Path) -> Path:
    """Weights of the same model, every norm a little larger: they load, and they compute something else."""
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(MODEL / "model.safetensors")
    path = tmp_path / "perturbed.safetensors"
    save_file({name: tensor * 1.02 if "norm" in name else tensor for name, tensor in tensors.items()}, path)
    assert any(tensor.dtype == torch.bfloat16 for tensor in tensors.values())
    return path


async def test_rollouts_through_weight_updates_and_a_kill(run: Any, perturbed: Path) -> None:
    encoder = PromptEncoder(MODEL)
    # One weights version is there before the first prompt, so it must be in use before it.
    await publish(run, 1, MODEL / "model.safetensors")
    process = run.launch("producer", SETTINGS)
    try:
        few = [request(number) for number in range(4)]
        await ask(run, *few, request(900, prompt="1+" * 60), request(901, deadline_s=time.time() - 1))
        found = await run.read("rollouts", until=holds(RolloutCompleted, 4 * SAMPLES), within_s=START_S)
        for rollout in of(found, RolloutCompleted):
            check(rollout, next(each for each in few if each.group_id == rollout.group_id), encoder)
            assert [span.version for span in rollout.spans] == [1] and rollout.attempt == 0
        (dead,) = of(await run.read("dead-letters", until=holds(DeadLetter, 1)), DeadLetter)
        assert "120 tokens leave no room" in dead.error and dead.source.topic == "prompts"

        # A publication in flight; a corrupt one after it must be passed over, and the next sound one taken.
        many = [request(number) for number in range(10, 170)]
        began = time.monotonic()
        await ask(run, *many)
        await run.read("rollouts", until=holds(RolloutCompleted, 6 * SAMPLES))
        await publish(run, 2, perturbed)
        await run.read("applied", until=has_applied(2))
        await publish(run, 3, perturbed, damaged=True)
        # A producer goes from 2 to 4 at once if it sees both, and then never opens the corrupt one.
        await run.read("applied", until=has_refused(3))
        await publish(run, 4, MODEL / "model.safetensors", canary=CANARY)
        total = (4 + len(many)) * SAMPLES
        found = await run.read("rollouts", until=holds(RolloutCompleted, total), within_s=START_S)
        took_s = time.monotonic() - began
        rollouts = of(found, RolloutCompleted)
        assert len({rollout.rollout_id for rollout in rollouts}) == len(rollouts) == total
        requests = {each.group_id: each for each in (*few, *many)}
        for rollout in rollouts:
            check(rollout, requests[rollout.group_id], encoder)
        crossed = check_versions(rollouts)
        update = check_reports(run, await run.read("applied", until=has_scored(4)))
        tokens = sum(len(rollout.response_ids.numpy()) for rollout in rollouts)
        print(
            f"{len(rollouts)} rollouts, {tokens / took_s:.0f} tokens/s, {crossed} across an update of "
            f"{update.in_flight} in flight, paused {update.pause_s * 1e3:.0f} ms"
        )
        assert "WEIGHTS 3 CANNOT BE USED" in run.log_of("producer").read_text()

        # The engine core is killed in the middle of many, in a producer that lives on.
        await engine_death(run, process, total)

        # Killed itself in the middle of many: the next process generates what is missing, with the newest weights. The
        # one before it is told to stop while it starts.
        more = [request(number) for number in range(200, 280)]
        before = len(of(await run.read("rollouts", until=holds(RolloutCompleted, total)), RolloutCompleted))
        await ask(run, *more)
        await run.read("rollouts", until=holds(RolloutCompleted, before + 10 * SAMPLES))
        process.kill()
        await asyncio.to_thread(process.wait, timeout=60)
        await stop_while_starting(run)
        process = run.launch("producer", SETTINGS)
        late = await all_of(run, more)
        print(f"{len(late) - SAMPLES * len(more)} of {SAMPLES * len(more)} rollouts were written twice around the kill")
        assert len(late) - SAMPLES * len(more) <= SAMPLES, "what was on the log is not generated again"
        assert {span.version for rollout in late for span in rollout.spans} == {4}

        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, timeout=60) == 0
    finally:
        process.kill()
        process.wait(timeout=10)
        print("\n".join(run.log_of("producer").read_text().splitlines()[-40:]))


def check_versions(rollouts: list[RolloutCompleted]) -> int:
    """Spans rise, none is of the corrupt version 3, and some rollouts cross an update: how many."""
    for rollout in rollouts:
        versions = [span.version for span in rollout.spans]
        assert versions == sorted(set(versions)) and 3 not in versions
    crossed = sum(len(rollout.spans) > 1 for rollout in rollouts)
    assert crossed, "some rollouts were in flight when the weights changed"
    assert {span.version for rollout in rollouts for span in rollout.spans} >= {1, 2}
    return crossed


def check_reports(run: Any, found: Found) -> WeightsApplied:
    """The corrupt version is reported too, and the canary's scores while the engine is full. The update that was made
    while many were in flight."""
    applied, (refused,), (scored,) = of(found, WeightsApplied), of(found, WeightsRefused), of(found, CanaryScored)
    assert [each.version for each in applied] == [1, 2, 4]
    assert (refused.version, scored.version) == (3, 4)
    logprobs = scored.logprobs.numpy()
    assert logprobs.shape == (2, 7) and (logprobs < 0).all()
    assert scored.time_s >= applied[-1].time_s
    assert {each.producer_id for each in (*applied, refused, scored)} == {"producer-0"}
    update: WeightsApplied = applied[1]
    assert update.in_flight > 0 and update.published_s > 0
    # A machine that takes long to start the engine is slow or busy, and takes longer over this as well.
    assert 0 < update.pause_s < max(2.0, start_s(run) / 10)
    return update


async def all_of(run: Any, requests: list[GroupRequested]) -> list[RolloutCompleted]:
    """Every rollout of `requests`, once all of them are there."""
    whole = {f"{each.group_id}.{index}" for each in requests for index in range(SAMPLES)}
    found = await run.read(
        "rollouts",
        until=lambda found: whole <= {rollout.rollout_id for rollout in of(found, RolloutCompleted)},
        within_s=START_S,
    )
    return [rollout for rollout in of(found, RolloutCompleted) if rollout.rollout_id in whole]


async def engine_death(run: Any, process: Any, total: int) -> None:
    """SIGKILL to the engine core: its rollouts are made again as the next attempt, with the newest weights, and those
    on the log are not."""
    several = [request(number) for number in range(300, 340)]
    (core,) = children(process, "EngineCore")
    await ask(run, *several[:8])
    await run.read("rollouts", until=holds(RolloutCompleted, total + 4 * SAMPLES))
    # It stands still while the others come, or it might be done with all of them before it is killed.
    os.kill(core.pid, signal.SIGSTOP)
    await ask(run, *several[8:])
    async with asyncio.timeout(60):
        while in_flight(run) <= 8 * SAMPLES:
            await asyncio.sleep(0.05)
    os.kill(core.pid, signal.SIGKILL)
    began = time.monotonic()
    await run.read(
        "rollouts", until=lambda found: any(r.attempt for r in of(found, RolloutCompleted)), within_s=START_S
    )
    print(f"engine killed; the first rollout of the next one came after {time.monotonic() - began:.1f} s")
    made = await all_of(run, several)
    assert len(made) == SAMPLES * len(several), "none is made twice"
    attempts = [rollout.attempt for rollout in made]
    assert set(attempts) == {0, 1} and attempts.count(0) >= 4 * SAMPLES
    assert {span.version for rollout in made for span in rollout.spans} == {4}


def in_flight(run: Any) -> int:
    """How many rollouts the producer says that its engine has."""
    port = json.loads((run.context.directory / "health" / "producer.json").read_text())["port"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=30) as response:
        said = " ".join(json.load(response)["waits"])
    found = re.search(r"(\d+) rollouts in flight", said)
    return int(found[1]) if found else 0


@pytest.mark.chaos
async def test_a_prompt_that_kills_the_engine_twice_is_a_dead_letter(run: Any) -> None:
    process = run.launch("producer", SETTINGS | {"extra": KILLER})
    try:
        killer = request(400, prompt="1+2+3" + "+" * REPEATED)
        await ask(run, killer)
        found = await run.read(
            "dead-letters",
            until=lambda found: any("engine died" in dead.error for dead in of(found, DeadLetter)),
            within_s=START_S,
        )
        (dead,) = [dead for dead in of(found, DeadLetter) if "engine died" in dead.error]
        assert "2 times while this prompt was in flight, the last time with it alone" in dead.error
        assert decode(dead.data) == killer and dead.source.topic == "prompts"
        after = [request(number) for number in range(410, 412)]
        await ask(run, *after)
        assert {rollout.attempt for rollout in await all_of(run, after)} == {0}
        assert process.poll() is None
    finally:
        process.kill()
        process.wait(timeout=10)
        print("\n".join(run.log_of("producer").read_text().splitlines()[-40:]))


def children(process: Any, of: str) -> list[psutil.Process]:
    """The processes below the producer whose command line holds `of`; others come and go meanwhile."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if of in " ".join(child.cmdline()):
                found.append(child)
    return found


def is_spawning(process: Any) -> bool:
    """Whether the engine core's interpreter is there, which gives itself its name seconds later."""
    return bool(children(process, "multiprocessing.spawn") or children(process, "EngineCore"))


def start_s(run: Any) -> float:
    """What the first start of the engine took on this machine."""
    return float(re.findall(r"engine up after ([0-9.]+) s", run.log_of("producer").read_text())[0])


async def stop_while_starting(run: Any) -> None:
    """Told to stop during vLLM's imports, and again when the engine core is there: it does not wait for the engine.

    What is left to do is the end of an interpreter full of torch and vLLM, which takes its time on a busy machine; so
    the bound is a share of what the same machine took for the first start.
    """
    first_s = start_s(run)
    due: list[Callable[[Any], bool]] = [lambda process: True, is_spawning]
    for is_due in due:
        process = run.launch("producer", SETTINGS)
        try:
            health = run.context.directory / "health" / "producer.json"
            async with asyncio.timeout(60):
                while not (
                    health.exists() and json.loads(health.read_text())["pid"] == process.pid and is_due(process)
                ):
                    await asyncio.sleep(0.05)
            family = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            assert await asyncio.to_thread(process.wait, timeout=60) == 0
            took_s = time.monotonic() - began
        finally:
            process.kill()
            process.wait(timeout=10)
        print(f"stopped while starting in {took_s:.1f} s of {first_s} s, with {len(family)} processes")
        assert took_s < first_s / 3
        _, alive = await asyncio.to_thread(psutil.wait_procs, family, timeout=30)
        assert not alive


async def test_a_model_directory_that_is_none_ends_it_with_code_2(run: Any, tmp_path: Path) -> None:
    process = run.launch("producer", SETTINGS | {"model": str(tmp_path / "nowhere")})
    assert await asyncio.to_thread(process.wait, timeout=60) == 2
    assert "nowhere" in run.log_of("producer").read_text().splitlines()[-2]
