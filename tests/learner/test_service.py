"""Two ranks of the service on a real broker: batches in, steps and weights out; killed and started again."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from learner.service import main
from learner.settings import LearnerSettings
from schemas import BatchPlanned, DeadLetter, Ref, StepCompleted
from streams.blobs import BlobStore
from streams.context import RunContext
from streams.errors import ConfigurationError
from streams.log import Log, LogSettings
from streams.scope import Scope
from tests.learner.service_run import PARTITIONS, Run, end, make_topics, write_batches


async def test_batches_become_steps_and_weights_and_a_kill_changes_nothing(run: Run, tmp_path: Path) -> None:
    await write_batches(run, 0, 5)
    with run.ranks() as children:
        steps = await run.steps(3, children)
        children[1].kill()
        # The other rank must not wait for its time-out.
        assert await asyncio.to_thread(children[0].wait, 15) == 1
    assert "learner rank 1 is gone" in run.complaint(0).splitlines()[-1], run.complaint(0)
    run.settings["max_steps"] = 5
    with run.ranks() as children:
        steps = await run.steps(5, children)
        interrupted = await run.published(5, children)
        assert await end(children) == [0, 0], run.complaint(0) + run.complaint(1)
    assert [step.batch_ref.topic for step in steps] == ["batches"] * len(steps)
    first: dict[int, StepCompleted] = {}
    for step in steps:
        same = first.setdefault(step.step, step)
        assert (same.batch, same.version, same.tokens) == (step.batch, step.version, step.tokens)
        assert step.version == step.step == step.batch + 1
        assert step.metrics["loss"] == same.metrics["loss"]
        assert step.sequences == 8 and not step.rejected
    assert {"replay/k3_on", "replay/k3_off", "replay/flip_share", "grad_norm", "entropy/high"} <= steps[
        0
    ].metrics.keys()

    again = replace(run.context, run=f"{run.context.run}b", directory=tmp_path / "again")
    again.directory.mkdir()
    await make_topics(again)
    other = Run(run.zygote, again, {**run.settings, "max_steps": 6})
    await write_batches(other, 0, 5)
    (spoilt,) = await write_batches(other, 5, 1, spoil=True)
    with other.ranks() as children:
        uninterrupted = await other.published(5, children)
        steps = await other.steps(6, children)
        await other.published(6, children)
        assert await end(children) == [0, 0], other.complaint(0) + other.complaint(1)
    assert [file.blob.digest for file in uninterrupted.files] == [file.blob.digest for file in interrupted.files]
    await check_rejected(other, spoilt, steps[-1])


async def check_rejected(run: Run, plan: BatchPlanned, step: StepCompleted) -> None:
    """A wrong digest, a wrong id and a missing record are rejected by name, and the rest is trained on."""
    ids = [sequence.rollout_id for sequence in plan.sequences]
    reasons = {rejected.rollout_id: rejected.reason for rejected in step.rejected}
    assert set(reasons) == {ids[1], "another", ids[4]}
    assert "digest" in reasons[ids[1]] and "not another" in reasons["another"] and "not on the log" in reasons[ids[4]]
    assert step.sequences == 5 and step.tokens == sum(
        sequence.response_tokens for index, sequence in enumerate(plan.sequences) if index not in (1, 2, 4)
    )
    letters = [event for event in await run.events("dead-letters") if isinstance(event, DeadLetter)]
    assert {letter.source for letter in letters} == {Ref(*plan.sequences[index].rollout) for index in (1, 2)}


async def test_a_model_of_another_family_is_the_users_mistake(learner_directory: Path, tmp_path: Path) -> None:
    model = tmp_path / "dense"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    context = RunContext("r", tmp_path, "127.0.0.1:1", PARTITIONS, (tmp_path / "blobs").as_uri())
    cases: dict[str, dict[str, Any]] = {
        "LlamaForCausalLM of model_type 'llama'; supported": {"model": str(model)},
        "no config.json": {"model": str(tmp_path)},
        "precision 'fp8' trains through transformer-engine on CUDA": {
            "model": str(learner_directory / "model"),
            "precision": "fp8",
        },
        "no setting 'beta'": {"model": str(learner_directory / "model"), "objective_settings": {"beta": 1}},
        "2 and 1 learner processes": {"model": str(model), "ranks": 2},
    }
    for sentence, changes in cases.items():
        log = Log(LogSettings(context.bootstrap, context.run, PARTITIONS), "test")
        async with asyncio.TaskGroup() as tasks:
            scope = Scope("learner", context, log, BlobStore(context.blob_uri), tasks)
            with pytest.raises(ConfigurationError, match=sentence):
                await main(scope, LearnerSettings(**{"ranks": 1, **changes}))
            # As the end of the service does: what runs beside `main` would be waited for.
            scope.cancel_spawned()
