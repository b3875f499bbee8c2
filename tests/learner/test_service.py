"""Two ranks of the service on a real broker: batches in, steps and weights out; killed and restarted."""

import asyncio
import json
import signal
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analysis.audit.trained import TrainedDigests
from learner.service import main
from schemas import BatchPlanned, DeadLetter, Ref, StepCompleted, WeightsPublished, WeightsRefused, decode, report_key
from streams.blobs.store import BlobStore
from streams.errors import ConfigurationError
from streams.log.clients import Writer
from streams.record import Output
from streams.runtime.health import health_file
from streams.weights import apply_deltas, chain_to, fetch_anchor
from tests.builders import service_of
from tests.learner.service_run import DEADLINE_S, Run, completed, end, write_batches
from tests.learner.settings import learner_settings
from tests.run_logs import log_at, records


async def test_batches_become_steps_and_weights_and_a_kill_changes_nothing(run: Run, tmp_path: Path) -> None:
    await write_batches(run, 0, 5)
    run.settings["collective_timeout_s"] = 2 * DEADLINE_S
    with run.ranks() as children:
        steps = await run.steps(3, children)
        children[1].kill()
        # The other rank must not wait for its time-out.
        assert await asyncio.to_thread(children[0].wait, DEADLINE_S) == 1
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
    packing = {name: value for name, value in steps[0].metrics.items() if name.startswith("packing/")}
    assert packing == {"packing/fill": 0.75, "packing/imbalance": 1.25, "packing/filler_share": 0.0}

    other = await run.another("again", max_steps=6, publish={"kind": "delta", "anchor_every": 3})
    await write_batches(other, 0, 5)
    (corrupted,) = await write_batches(other, 5, 1, corrupt=True)
    with other.ranks() as children:
        uninterrupted = await other.published(5, children)
        steps = await other.steps(6, children)
        await other.published(6, children)
        await check_refusal_is_answered(other, children)
        assert await end(children) == [0, 0], other.complaint(0) + other.complaint(1)
    # The one was published in full, the other as a delta; the weights are the same to the last bit.
    assert interrupted.kind == "full" and uninterrupted.kind == "delta"
    assert uninterrupted.digest == interrupted.digest is not None
    await check_chain(other, tmp_path / "held")
    await check_rejected(other, corrupted, steps[-1])
    await check_digests(run, 5)
    await check_digests(other, 6)


async def check_digests(run: Run, steps: int) -> None:
    """Every step says what it was trained on, as the log has it, and by which settings; a repeated one the same."""
    trained, said = TrainedDigests(), set()
    for topic in ("steps", "batches", "rollouts"):
        for record in await records(run.log, topic):
            event = decode(record.value)
            trained.add(event, record.ref)
            if isinstance(event, StepCompleted):
                said.add((event.step, event.trained_digest))
                assert event.config_digest == "sha256:00"
    assert trained.judge() == (steps, [])
    assert len(said) == steps and None not in {digest for _, digest in said}


async def check_refusal_is_answered(run: Run, children: list[Any]) -> None:
    """A producer could not use the newest delta: it is published once more, in full, and only once."""
    async with Writer(run.log) as writer:
        for _ in range(2):
            refused = WeightsRefused(producer_id="p", version=6, time_s=1.0)
            await writer.write(Output("applied", refused, key=report_key(refused)))
    async with asyncio.timeout(DEADLINE_S):
        while [event.kind for event in await weights_of(run) if event.version == 6] != ["delta", "full"]:
            assert all(child.poll() is None for child in children), run.complaint(0)
            await asyncio.sleep(0.05)
    assert len({event.digest for event in await weights_of(run) if event.version == 6}) == 1


async def check_chain(run: Run, directory: Path) -> None:
    """Whoever joins late gets each version's weights, and the learner's canary with them."""
    events = await weights_of(run)
    assert [(event.version, event.kind) for event in events] == [
        (1, "full"), (2, "delta"), (3, "delta"), (4, "full"), (5, "delta"), (6, "delta"), (6, "full"),
    ]  # fmt: skip
    blobs = BlobStore(run.context.blob_uri)
    by_version = {event.version: event for event in events[:-1]}
    for version in (3, 6):
        anchor, *deltas = chain_to(version, by_version)
        held = fetch_anchor(blobs, anchor, directory / f"a{version}")
        assert apply_deltas(blobs, held, deltas, directory / f"d{version}").digest == by_version[version].digest
    canaries = [event.canary.logprobs.numpy() for event in events if event.canary is not None]
    assert len(canaries) == len(events) and not (canaries[0] == canaries[4]).all()
    assert (canaries[-1] == canaries[-2]).all()


async def weights_of(run: Run) -> list[WeightsPublished]:
    return [event for event in await run.events("weights") if isinstance(event, WeightsPublished)]


async def check_rejected(run: Run, plan: BatchPlanned, step: StepCompleted) -> None:
    """A wrong digest, a wrong id and a missing record are rejected by name, and the rest is trained on."""
    ids = [sequence.rollout_id for sequence in plan.sequences]
    reasons = {rejected.rollout_id: rejected.reason for rejected in step.rejected}
    assert set(reasons) == {ids[1], "another", ids[4]}
    assert "digest" in reasons[ids[1]] and "not another" in reasons["another"] and "not on the log" in reasons[ids[4]]
    assert step.sequences == 5 and step.tokens == sum(
        completed(index, 5).sampled_tokens for index in range(8) if index not in (1, 2, 4)
    )
    dead_letters = [event for event in await run.events("dead-letters") if isinstance(event, DeadLetter)]
    assert {each.source for each in dead_letters} == {Ref(*plan.sequences[index].rollout) for index in (1, 2)}


async def waits(run: Run, rank: int, what: str, replicas: int) -> None:
    """Wait until the rank's status reports that it waits for `what`."""
    health = health_file(run.context.directory, "learner", rank, replicas)
    async with asyncio.timeout(DEADLINE_S):
        while what not in " ".join(await asyncio.to_thread(waits_of, health)):
            await asyncio.sleep(0.02)


def waits_of(health: Path) -> list[str]:
    """What the service behind the health file reports that it waits for."""
    try:
        port = json.loads(health.read_text())["port"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=5) as response:
            lines: list[str] = json.load(response)["waits"]
            return lines
    except OSError:
        return []


async def test_a_rank_asked_to_stop_during_the_rendezvous_stops_all(run: Run) -> None:
    three = Run(run.zygote, replace(run.context, replicas=3), {**run.settings, "ranks": 3})
    alone = three.start(1)
    await waits(three, 1, "for learner rank 0 to listen at", 3)
    with killed_at_the_end(alone, zero := three.start(0)):
        await waits(three, 0, "for learner rank 2 of 3 to connect", 3)
        alone.send_signal(signal.SIGTERM)
        assert [await asyncio.to_thread(child.wait, 60) for child in (alone, zero)] == [0, 0], three.complaint(0)
    assert "learner rank 1 was asked to stop, and rank 0 stops with it" in three.complaint(0)


async def test_a_rank_that_does_not_connect_is_named_by_all(run: Run) -> None:
    settings = {**run.settings, "ranks": 3, "rendezvous_timeout_s": 4.0}
    three = Run(run.zygote, replace(run.context, replicas=3), settings)
    with killed_at_the_end(zero := three.start(0), one := three.start(1)):
        assert [await asyncio.to_thread(child.wait, 60) for child in (zero, one)] == [1, 1]
    for rank in (0, 1):
        last = three.complaint(rank).splitlines()[-1]
        assert last.endswith("RankError: learner rank 0 waited 4 s for learner rank 2 of 3 to connect"), last


async def test_a_checkpoint_of_another_model_is_the_users_mistake(run: Run, another_model: Path) -> None:
    await write_batches(run, 0, 2)
    run.settings["max_steps"] = 2
    with run.ranks() as children:
        await run.published(2, children)
        assert await end(children) == [0, 0], run.complaint(0)
    run.settings["model"] = str(another_model)
    with run.ranks() as children:
        assert [await asyncio.to_thread(child.wait, 60) for child in children] == [2, 2]
    for rank in (0, 1):
        last = run.complaint(rank).splitlines()[-1]
        assert "step-2 is of run and model" in last and "use a run directory of its own" in last, last


@contextmanager
def killed_at_the_end(*children: Any) -> Iterator[None]:
    try:
        yield
    finally:
        for child in children:
            child.kill()
            child.wait(10)


async def test_a_model_of_another_family_is_the_users_mistake(learner_directory: Path, tmp_path: Path) -> None:
    model = tmp_path / "dense"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    cases: dict[str, dict[str, Any]] = {
        "LlamaForCausalLM of model_type 'llama'; supported": {"model": str(model)},
        "no config.json": {"model": str(tmp_path)},
        "precision 'fp8' trains through transformer-engine on CUDA": {
            "model": str(learner_directory / "model"),
            "precision": "fp8",
        },
        "attention 'flex_attention' trains on CUDA": {
            "model": str(learner_directory / "model"),
            "attention": "flex_attention",
        },
        "2 and 1 learner processes": {"model": str(model), "ranks": 2},
    }
    for sentence, changes in cases.items():
        async with service_of(log_at(), tmp_path, "learner") as service:
            with pytest.raises(ConfigurationError, match=sentence):
                await main(service, learner_settings(**{"ranks": 1, **changes}))
