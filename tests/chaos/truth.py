"""Whether the training matches the log: trained once more from it alone, undisturbed, it must come out the same."""

import asyncio
import json
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from analysis.history.run_log import RunLog
from schemas import BatchPlanned, WeightsPublished
from streams.blobs.store import BlobStore
from streams.log.clients import Log, LogSettings
from streams.log.fetch import RecordFetcher
from tests.chaos.pipeline import Pipeline
from tests.chaos.progress import Progress
from tests.chaos.shape import LEARNER, PARTITIONS
from tests.chaos.stepper import State, fingerprint, trained

_START_S: Final = 90.0
_STEP_S: Final = 3.0

_Checkpoint = tuple[str, tuple[str, ...]]
"""Its name, and the digests of its files."""


async def untrue_digests(pipeline: Pipeline, progress: Progress) -> list[str]:
    """The stepper's digest: every step must have the one that folding over the log's batches gives."""
    config = pipeline.config
    log = Log(LogSettings(pipeline.broker.bootstrap, config.run.id, PARTITIONS), "verifier")
    run_log = RunLog(pipeline.broker.bootstrap, config.run.id)
    events = await asyncio.to_thread(lambda: [event for event, _ in run_log.events("batches")])
    plans = [event for event in events if isinstance(event, BatchPlanned)]
    state, blobs, untrue = State(), BlobStore(config.layout.blob_uri), []
    async with RecordFetcher(log, "rollouts") as fetcher:
        for plan in plans:
            records = await fetcher.fetch([sequence.rollout for sequence in plan.sequences], 30.0)
            weights = trained(state.weights, plan, records, blobs)
            state = State(state.step + 1, 0, weights)
            said = progress.steps.get(state.step)
            if said is None or said.metrics["weights"] != fingerprint(weights):
                untrue.append(f"step {state.step} says {said and said.metrics}, the log {fingerprint(weights)}")
    return untrue


async def untrue_weights(pipeline: Pipeline, progress: Progress) -> list[str]:
    """The real learner: without its checkpoints it trains on every batch of the log again, from the first one on, and
    must record every step alike (`Progress` sees to that), publish the same bits, and end in the same checkpoint."""
    await pipeline.stop()
    steps, recorded = len(progress.steps), progress.recorded.copy()
    checkpoints = pipeline.directory / "checkpoints"
    before = await asyncio.to_thread(_take, checkpoints)
    pipeline.serve([LEARNER])
    deadline_s = _START_S + _STEP_S * steps
    again = await progress.until(
        "for the log to be trained on again", lambda: progress.recorded[steps] > recorded[steps], deadline_s
    )
    await pipeline.stop()
    if not again:
        return [f"the log's {steps} steps were not trained again within {deadline_s:.0f} s"]
    after = await asyncio.to_thread(_take, checkpoints)
    run_log = RunLog(pipeline.broker.bootstrap, pipeline.config.run.id)
    published = await asyncio.to_thread(_published, run_log)
    return list(differences(steps, before, after, published))


def differences(
    steps: int, before: _Checkpoint, after: _Checkpoint, published: Mapping[int, Sequence[tuple[str, ...]]]
) -> Iterator[str]:
    """Where the training after `steps` steps differs from its repetition: in its last checkpoint, in its weights."""
    if before != after:
        yield f"the last checkpoint was {before}, and from the log alone it is {after}"
    for version in range(1, steps + 1):
        contents = published.get(version, ())
        if len(contents) < 2:
            yield f"weights {version} were published {len(contents)} times, and not both times"
        if len(set(contents)) > 1:
            yield f"weights {version} have {len(set(contents))} different contents"


def _take(checkpoints: Path) -> _Checkpoint:
    """Name and files' digests of the newest checkpoint; all of them are deleted."""
    newest = max(checkpoints.glob("step-*/manifest.json"), key=lambda path: int(path.parent.name.removeprefix("step-")))
    files = json.loads(newest.read_text())["checkpoint"]["files"]
    taken = newest.parent.name, tuple(file["digest"] for file in files)
    for path in checkpoints.iterdir():
        shutil.rmtree(path)
    return taken


def _published(log: RunLog) -> defaultdict[int, list[tuple[str, ...]]]:
    """Version → the digests of its files, once for each time it was published."""
    found: defaultdict[int, list[tuple[str, ...]]] = defaultdict(list)
    for event, _ in log.events("weights"):
        if isinstance(event, WeightsPublished):
            found[event.version].append(tuple(file.blob.digest for file in event.files))
    return found
