"""Kills of the learner's ranks, and the digests by which a run is compared with another."""

import asyncio
import json
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from schemas import StepCompleted, WeightsPublished
from streams.runtime.health import health_file
from tests.learner.service_run import DEADLINE_S, Run, end, write_batches

STEPS = 8
CHECKPOINT_EVERY = 3
POINTS = (
    ("learner.training", 2),
    ("learner.trained", 1),
    ("learner.announced", 3),
    ("publisher.uploaded", 2),
    ("publisher.published", 1),
    ("checkpoint.shards", 1),
    ("checkpoint.manifest", 1),
    ("checkpoint.renamed", 1),
    ("transaction.sent", 2),
    ("blobs.written", 2),
    ("transaction.committed", 1),
)
"""Each with the hit at which it kills; whichever rank gets there first dies."""

MATE_S = 3.0
"""How long the supervisor leaves the other ranks to end by themselves."""

Digests = dict[int, list[str]]


@dataclass
class Kills:
    """Measured on kills: seconds from a kill to the exit of the other rank, and from a start to the next step."""

    ended_s: list[float] = field(default_factory=list)
    progress_s: list[float] = field(default_factory=list)
    before_rendezvous: int = 0

    def __str__(self) -> str:
        ended, progress = sorted(self.ended_s) or [0.0], sorted(self.progress_s) or [0.0]
        return (
            f"{len(self.ended_s) + self.before_rendezvous} kills, {self.before_rendezvous} before the rendezvous: the "
            f"other rank ended after {ended[len(ended) // 2]:.2f} s (worst {ended[-1]:.2f}), the next step was logged "
            f"{progress[len(progress) // 2]:.2f} s after the start (worst {progress[-1]:.2f})"
        )


async def recorded(run: Run, name: str, settings: Mapping[str, Any], ranks: int = 2) -> Run:
    """A run on a second copy of the same log, under another name, with its own directory."""
    changed = {"checkpoint_every": CHECKPOINT_EVERY, "ranks": ranks, **settings}
    other = await run.another(name, replicas=ranks, **changed)
    other.env["EACHPROMPT_FAULTS"] = str(other.context.directory / "faults")
    await write_batches(other, 0, STEPS)
    return other


async def weights(run: Run) -> Digests:
    """Digests by version; a version that was published twice is the same both times."""
    found: Digests = {}
    for event in await run.events("weights"):
        if isinstance(event, WeightsPublished):
            digests = [file.blob.digest for file in event.files]
            assert found.setdefault(event.version, digests) == digests, f"version {event.version} changed"
    return found


async def steps(run: Run) -> dict[int, StepCompleted]:
    """Steps by number; a step that was done twice reports the same both times."""
    found: dict[int, StepCompleted] = {}
    for event in await run.events("steps"):
        if isinstance(event, StepCompleted):
            first = found.setdefault(event.step, event)
            assert (first.batch, first.version, first.tokens, first.rejected) == (
                event.batch, event.version, event.tokens, event.rejected,
            )  # fmt: skip
            assert first.metrics["loss"] == event.metrics["loss"]
    return found


def optimizer(run: Run) -> list[str]:
    """Digests of the last checkpoint's shards: weights, both moments and the generator of every rank."""
    path = run.context.directory / "checkpoints" / f"step-{STEPS}" / "manifest.json"
    return [file["digest"] for file in json.loads(path.read_text())["checkpoint"]["files"]]


async def all_ready(run: Run, ranks: int) -> None:
    """Wait until all ranks are ready, before one of them is stopped.

    A rank that is stopped before the rendezvous leaves the others waiting for its successor, where a supervisor would
    stop all of them. This may happen here: an earlier process may have published the last weights already.
    """
    async with asyncio.timeout(DEADLINE_S):
        for rank in range(ranks):
            while not await asyncio.to_thread(answers, health_file(run.context.directory, "learner", rank, ranks)):
                await asyncio.sleep(0.05)


def answers(health: Path) -> bool:
    """Whether the service behind the health file says that it is ready."""
    try:
        port = json.loads(health.read_text())["port"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


async def complete(run: Run, children: list[Any]) -> Digests:
    """Wait until the last step is done and saved, and end the ranks.

    An earlier process may have published the last weights already; this one then does the steps after its checkpoint
    again.
    """
    await run.published(STEPS, children)
    await all_ready(run, len(children))
    async with asyncio.timeout(DEADLINE_S):
        while not (run.context.directory / "checkpoints" / f"step-{STEPS}" / "manifest.json").exists():
            assert all(child.poll() is None for child in children), run.complaint(0)
            await asyncio.sleep(0.02)
    assert await end(children) == [0] * len(children), run.complaint(0)
    assert sorted(await steps(run)) == list(range(1, STEPS + 1))
    return await weights(run)


async def death(run: Run, children: list[Any], observed: Kills, mate_s: float = MATE_S) -> None:
    """Wait until one rank has exited and then the other; record both times, and that of these ranks' first step."""
    async with asyncio.timeout(DEADLINE_S):
        began, before = time.monotonic(), len(await run.events("steps"))
        stepped = False
        while all(child.poll() is None for child in children):
            if not stepped and len(await run.events("steps")) > before:
                stepped = True
                observed.progress_s.append(time.monotonic() - began)
            await asyncio.sleep(0.02)
        died = time.monotonic()
        while any(child.poll() is None for child in children):
            if time.monotonic() > died + mate_s:
                # Before the rendezvous a rank waits for the other's successor; the supervisor would stop it.
                observed.before_rendezvous += 1
                return
            await asyncio.sleep(0.02)
        observed.ended_s.append(time.monotonic() - died)


def fired(run: Run) -> set[str]:
    """The points at which a rank died."""
    return {path.stem.partition(":")[2] for path in Path(run.env["EACHPROMPT_FAULTS"]).glob("*.fired")}


def run_named(run: Run, name: str) -> Run:
    """A run that `recorded` made."""
    directory = run.context.directory / name
    return Run(run.zygote, replace(run.context, run=f"{run.context.run}{name}", directory=directory), run.settings)


async def published_tensors(run: Run, version: int) -> dict[str, torch.Tensor]:
    """The files of a version, read."""
    for event in await run.events("weights"):
        if isinstance(event, WeightsPublished) and event.version == version:
            paths = [file.blob.uri.removeprefix("file://") for file in event.files]
            return {name: tensor for path in paths for name, tensor in load_file(path).items()}
    raise AssertionError(f"version {version} was never published")


async def published_digests(run: Run, version: int) -> list[list[str]]:
    """The digests of the files of each publication of a version."""
    return [
        [file.blob.digest for file in event.files]
        for event in await run.events("weights")
        if isinstance(event, WeightsPublished) and event.version == version
    ]
