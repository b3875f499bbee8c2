"""Killed at any instant, the learner resumes to the same bits, and every step and its weights are on the log."""

import asyncio
import errno
import os
import random
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from schemas import DeadLetter, StepCompleted
from streams.blobs.store import BlobStore
from streams.faults import arm
from tests.learner.kills import (
    CHECKPOINT_EVERY,
    POINTS,
    STEPS,
    Digests,
    Kills,
    all_ready,
    complete,
    death,
    fired,
    optimizer,
    published_digests,
    published_tensors,
    recorded,
    run_named,
    steps,
    weights,
)
from tests.learner.service_run import DEADLINE_S, Run, completed, end


@pytest.fixture
async def uninterrupted(run: Run) -> tuple[Digests, list[str]]:
    """Weights by version, and the last checkpoint, of an undisturbed run."""
    plain = await recorded(run, "plain", {"max_steps": STEPS})
    with plain.ranks() as children:
        return await complete(plain, children), optimizer(plain)


async def test_a_kill_at_every_critical_point_changes_no_bit(
    run: Run, uninterrupted: tuple[Digests, list[str]]
) -> None:
    killed = await recorded(run, "points", {"max_steps": STEPS})
    observed = Kills()
    for point, hit in POINTS:
        arm(Path(killed.env["EACHPROMPT_FAULTS"]), "learner", point, "kill", hit)
        with killed.ranks() as children:
            # The rendezvous is over by then, so the other rank ends by itself, however busy the machine is.
            await death(killed, children, observed, mate_s=DEADLINE_S)
            (dead,) = [rank for rank, child in enumerate(children) if child.poll() == -signal.SIGKILL]
            last = killed.complaint(1 - dead).splitlines()[-1]
            assert f"learner rank {dead} is gone" in last, f"{point}: {last}"
    assert observed.before_rendezvous == 0 and fired(killed) == {point for point, _ in POINTS}
    with killed.ranks() as children:
        digests = await complete(killed, children)
    print(observed)
    assert (digests, optimizer(killed)) == uninterrupted


async def kill_at_random(run: Run, seed: int, kills: int) -> Kills:
    """`kills` times, kill one rank or both: some steps after their start, at any instant of the next one."""
    draw, observed = random.Random(seed), Kills()
    for _ in range(kills):
        enough = len(await run.events("steps")) + draw.randint(0, 4)
        with run.ranks() as children:
            dying = asyncio.create_task(death(run, children, observed))
            while len(done := await run.events("steps")) < enough and not is_last(done) and not dying.done():
                await asyncio.sleep(0.02)
            await asyncio.wait([dying], timeout=draw.uniform(0.0, 0.5))
            for child in draw.choice([children[:1], children[1:], children]):
                child.kill()
            await dying
    return observed


def is_last(done: list[Any]) -> bool:
    """Whether the run's last step is the newest record, after which these ranks write no more."""
    return bool(done) and done[-1].step == STEPS


@pytest.mark.parametrize(
    ("seed", "kills"), [(1, 5), *(pytest.param(seed, 25, marks=pytest.mark.chaos) for seed in (2, 3, 4, 5))]
)
async def test_kills_at_any_instant_change_no_bit(
    run: Run, uninterrupted: tuple[Digests, list[str]], seed: int, kills: int
) -> None:
    killed = await recorded(run, f"seed{seed}", {"max_steps": STEPS})
    observed = await kill_at_random(killed, seed, kills)
    with killed.ranks() as children:
        digests = await complete(killed, children)
    print(observed)
    assert (digests, optimizer(killed)) == uninterrupted


@pytest.mark.parametrize(
    ("before", "after"),
    [(2, 1), *(pytest.param(*counts, marks=pytest.mark.chaos) for counts in ((1, 2), (2, 4), (3, 2)))],
)
async def test_another_number_of_ranks_resumes_with_the_same_batches(
    run: Run, uninterrupted: tuple[Digests, list[str]], before: int, after: int
) -> None:
    killed = await recorded(run, "others", {"max_steps": STEPS}, before)
    arm(Path(killed.env["EACHPROMPT_FAULTS"]), "learner", "checkpoint.renamed", "kill")
    with killed.ranks() as children:
        await death(killed, children, Kills())
    others = Run(run.zygote, replace(killed.context, replicas=after), {**killed.settings, "ranks": after}, {})
    with others.ranks() as children:
        await others.published(STEPS, children)
        await all_ready(others, after)
        assert await end(children) == [0] * after, others.complaint(0)
    done = [event for event in await others.events("steps") if isinstance(event, StepCompleted)]
    # The killed ranks may have trained on until the next checkpoint; the others resume after the first checkpoint.
    once = [event.step for event in done[: CHECKPOINT_EVERY - STEPS]]
    assert once == list(range(1, len(once) + 1)) and CHECKPOINT_EVERY <= len(once) <= 2 * CHECKPOINT_EVERY
    assert [event.step for event in done[CHECKPOINT_EVERY - STEPS :]] == list(range(CHECKPOINT_EVERY + 1, STEPS + 1))
    assert all(event.batch == event.step - 1 for event in done)
    assert {event.sequences for event in done} == {8}
    mine, theirs = await published_tensors(others, STEPS), await published_tensors(run_named(run, "plain"), STEPS)
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        # Published in bf16: equal up to one rounding.
        torch.testing.assert_close(tensor, theirs[name], atol=1e-3, rtol=1e-2)


async def test_the_last_weights_come_out_though_only_the_checkpoint_did(run: Run) -> None:
    last = await recorded(run, "last", {"publish_every": 5, "checkpoint_every": STEPS})
    with last.ranks() as children:
        await last.steps(STEPS, children)
        manifest = last.context.directory / "checkpoints" / f"step-{STEPS}" / "manifest.json"
        async with asyncio.timeout(DEADLINE_S):
            while not await asyncio.to_thread(manifest.exists):
                await asyncio.sleep(0.02)
    assert sorted(await weights(last)) == [5]
    last.settings["max_steps"] = STEPS
    with last.ranks() as children:
        await last.published(STEPS, children)
        assert await end(children) == [0, 0], last.complaint(0)
    assert sorted(await weights(last)) == [5, STEPS]
    assert sorted(await steps(last)) == list(range(1, STEPS + 1))


async def test_training_continues_while_a_checkpoint_is_written(run: Run) -> None:
    """The file of an armed fault is a pipe here: a rank that opens it blocks until something is written."""
    held = await recorded(run, "held", {"checkpoint_every": 2})
    faults = Path(held.env["EACHPROMPT_FAULTS"])
    arm(faults, "learner", "checkpoint.renamed", "kill")
    pipe = faults / "learner:checkpoint.shards.armed"
    os.mkfifo(pipe)
    checkpoint = held.context.directory / "checkpoints" / "step-2"
    with held.ranks() as children:
        # The next checkpoint would be that of step 4, which waits for this one.
        await held.published(3, children)
        assert not checkpoint.exists()
        writing = await opened_for_writing(pipe)
        pipe.unlink()
        os.write(writing, b"kill 99")
        os.close(writing)
        await death(held, children, Kills())
    assert checkpoint.exists() and fired(held) == {"checkpoint.renamed"}
    before = await published_digests(held, 3)
    with held.ranks() as children:
        async with asyncio.timeout(DEADLINE_S):
            while len(again := await published_digests(held, 3)) < 2:
                assert all(child.poll() is None for child in children), held.complaint(0)
                await asyncio.sleep(0.05)
    assert len(before) == 1 and again == before * 2


async def opened_for_writing(pipe: Path) -> int:
    """A descriptor of the pipe, as soon as there is a reader."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                await asyncio.sleep(0.02)


def move(path: Path, target: Path) -> None:
    path.rename(target)


async def test_what_an_earlier_process_rejected_stays_rejected(run: Run) -> None:
    again = await recorded(run, "rejected", {"checkpoint_every": 2 * STEPS})
    routes = completed(1, 1, BlobStore(again.context.blob_uri)).routes
    assert routes is not None and routes.blob is not None
    lost = Path(routes.blob.uri.removeprefix("file://"))
    hidden = lost.with_suffix(".hidden")
    move(lost, hidden)
    with again.ranks() as children:
        first = {step.step: step for step in await again.steps(3, children)}[2]
    assert [(each.rollout_id, each.reason) for each in first.rejected] == [("g.0.1.1", first.rejected[0].reason)]
    # By now it could be read, but the step's weights are published and must come out the same.
    move(hidden, lost)
    before = len(await again.events("steps"))
    with again.ranks() as children:
        await again.records("steps", before + 3, children)
    await steps(again)
    dead_letters = [event for event in await again.events("dead-letters") if isinstance(event, DeadLetter)]
    assert len(dead_letters) == 1
