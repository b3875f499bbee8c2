"""The real engine with prompts as people have them: hundreds of tokens each, more than one step computes."""

import asyncio
from pathlib import Path

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
        whole = await generations(engine, "before", seeded=True)
        under_way = asyncio.create_task(generations(engine, "during", seeded=True))
        unseeded = asyncio.create_task(generations(engine, "plain", seeded=False))
        await engine.update_weights(1, [WeightFile(second / "model.safetensors")])
        await under_way
        await unseeded
        after = await generations(engine, "after", seeded=True)
    finally:
        await engine.stop()
    for generation, length in zip(whole, LENGTHS, strict=True):
        assert generation.response_ids.shape == (8,)
        assert generation.routes is not None and generation.routes.shape[0] == length + 8
        assert np.isfinite(generation.logprobs).all()
    assert {span.version for generation in after for span in generation.spans} == {1}


@pytest.mark.parametrize("extra", [{"enable_chunked_prefill": True}])
def test_what_ends_the_engine_on_a_cpu_is_refused(tmp_path: Path, extra: dict[str, bool]) -> None:
    model = make_model(tmp_path / "model", 0)
    with pytest.raises(EngineSettingsError, match="enable_chunked_prefill in extra must stay off on cpu"):
        EngineSettings(model=str(model), extra=extra)


def settings(model: Path) -> EngineSettings:
    return EngineSettings(model=str(model), max_model_len=448, max_num_batched_tokens=64, kv_cache_dtype="auto")


async def generations(engine: RolloutEngine, name: str, *, seeded: bool) -> list[Generation]:
    sampling = Sampling(max_tokens=8, temperature=1.0)
    return await asyncio.gather(
        *(
            engine.generate(
                [3 + (start * position) % 61 for position in range(length)],
                sampling,
                f"{name}.{start}",
                seed=start if seeded else None,
                ignore_eos=True,
            )
            for start, length in enumerate(LENGTHS, 1)
        )
    )
