"""The real engine with prompts as people have them: hundreds of tokens each, more than one step computes."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from producers.rollouts.engine.engine import RolloutEngine
from producers.rollouts.engine.errors import EngineSettingsError
from producers.rollouts.engine.generation import Generation
from producers.rollouts.engine.settings import EngineSettings
from producers.rollouts.engine.weight_files import WeightFile
from schemas import Sampling
from tests.producers.rollouts.engine.test_engine import make_model

pytestmark = [pytest.mark.engine, pytest.mark.timeout(280), pytest.mark.filterwarnings("default")]

LENGTHS = [40, 400, 250, 120, 399, 333, 80, 210, 375, 160, 290, 400]
"""3,057 tokens, and a step computes 448."""


async def test_prompts_of_hundreds_of_tokens_with_and_without_seeds_across_a_weight_update(tmp_path: Path) -> None:
    first, second = make_model(tmp_path / "first", 0), make_model(tmp_path / "second", 1)
    engine = RolloutEngine(settings(first))
    await engine.start()
    try:
        whole = await generations(engine, "before", LENGTHS, seeded=True)
        under_way = asyncio.create_task(generations(engine, "during", LENGTHS, seeded=True))
        unseeded = asyncio.create_task(generations(engine, "plain", LENGTHS, seeded=False))
        await engine.update_weights(1, [WeightFile(second / "model.safetensors")])
        await under_way
        await unseeded
        after = await generations(engine, "after", LENGTHS, seeded=True)
    finally:
        await engine.stop()
    for generation, length in zip(whole, LENGTHS, strict=True):
        assert generation.response_ids.shape == (8,)
        assert generation.routes is not None and generation.routes.shape[0] == length + 8
        assert np.isfinite(generation.logprobs).all()
    assert {span.version for generation in after for span in generation.spans} == {1}


async def test_preempted_requests_with_and_without_seeds_are_what_they_are_without_preemption(
    tmp_path: Path, preemptions: list[int]
) -> None:
    """The cache holds two of 24 responses at their full length, so most lose their place and are computed again."""
    model = make_model(tmp_path / "model", 0)
    lengths = [40, 60, 30, 120, 90, 100, 80, 70, 110, 50, 45, 100] * 2
    found = {}
    for cache_bytes in (64 << 20, 700_000):
        engine = RolloutEngine(replace(settings(model), kv_cache_bytes=cache_bytes, extra={"disable_log_stats": False}))
        await engine.start()
        preemptions.clear()
        try:
            found[cache_bytes] = await generations(engine, "seeded", lengths, seeded=True, tokens=250)
            roomy = cache_bytes == 64 << 20
            assert (sum(preemptions) == 0) if roomy else (sum(preemptions) > 10)
            if not roomy:
                unseeded = await generations(engine, "plain", lengths, seeded=False, tokens=250)
        finally:
            await engine.stop()
    assert all(np.isfinite(each.logprobs).all() and each.response_ids.shape == (250,) for each in unseeded)
    for plain, preempted in zip(*found.values(), strict=True):
        assert np.array_equal(plain.response_ids, preempted.response_ids)
        assert np.abs(plain.logprobs - preempted.logprobs).max() < 0.05
        assert plain.routes is not None and preempted.routes is not None
        assert plain.routes.shape == preempted.routes.shape


@pytest.fixture
def preemptions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many requests each step preempted, as the engine core reports them to vLLM's front end in this process."""
    from vllm.v1.metrics.stats import IterationStats

    counts: list[int] = []
    plain = IterationStats.update_from_events

    def update_from_events(self: Any, *arguments: Any) -> None:
        before = self.num_preempted_reqs
        plain(self, *arguments)
        counts.append(self.num_preempted_reqs - before)

    monkeypatch.setattr(IterationStats, "update_from_events", update_from_events)
    return counts


@pytest.mark.parametrize("extra", [{"enable_chunked_prefill": True}])
def test_what_ends_the_engine_on_a_cpu_is_refused(tmp_path: Path, extra: dict[str, bool]) -> None:
    model = make_model(tmp_path / "model", 0)
    with pytest.raises(EngineSettingsError, match="enable_chunked_prefill in extra must stay off on cpu"):
        EngineSettings(model=str(model), extra=extra)


def settings(model: Path) -> EngineSettings:
    return EngineSettings(model=str(model), max_model_len=448, max_num_batched_tokens=64, kv_cache_dtype="auto")


async def generations(
    engine: RolloutEngine, name: str, lengths: Sequence[int], *, seeded: bool, tokens: int = 8
) -> list[Generation]:
    sampling = Sampling(max_tokens=tokens, temperature=1.0)
    return await asyncio.gather(
        *(
            engine.generate(
                [3 + (start * position) % 61 for position in range(length)],
                sampling,
                f"{name}.{start}",
                seed=start if seeded else None,
                ignore_eos=True,
            )
            for start, length in enumerate(lengths, 1)
        )
    )
