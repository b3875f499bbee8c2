"""An engine that keeps dying is given up with a sentence; what is killed while it starts again leaves nothing."""

import asyncio
from pathlib import Path

import psutil
import pytest

from producers.rollouts.engine.errors import EngineDied
from producers.rollouts.engine.settings import EngineSettings
from producers.rollouts.engine.supervised import EngineRestarts, SupervisedEngine
from schemas import Sampling

pytestmark = [
    pytest.mark.engine,
    pytest.mark.chaos,
    pytest.mark.timeout(280),
    # vLLM's, torch's and pyzmq's own.
    pytest.mark.filterwarnings("default"),
]

MODEL = Path(__file__).parents[4] / "models" / "tiny-moe"


def kill_cores() -> int:
    """SIGKILL to every engine core below this process; how many there were."""
    cores = [child for child in psutil.Process().children(recursive=True) if "EngineCore" in " ".join(child.cmdline())]
    for core in cores:
        core.kill()
    return len(cores)


async def test_an_engine_that_dies_again_and_again_is_given_up() -> None:
    settings = EngineSettings(model=str(MODEL), max_model_len=96, kv_cache_bytes=64 << 20)
    engine = SupervisedEngine(settings, EngineRestarts(first_s=0.0, max_barren=3))
    await engine.start()
    prepared = 0

    async def prepare() -> None:
        nonlocal prepared
        prepared += 1

    engine.prepare = prepare
    running = asyncio.create_task(engine.run())
    try:
        await engine.generate([5, 6], Sampling(max_tokens=4), "first")
        for incarnation in range(3):
            assert await engine.available() == incarnation
            generating = asyncio.create_task(
                engine.generate([5, 6], Sampling(max_tokens=80), f"lost-{incarnation}", seed=1)
            )
            await asyncio.sleep(0)
            assert kill_cores() == 1
            with pytest.raises(EngineDied):
                await generating
        with pytest.raises(EngineDied, match="died 3 times in a row before it completed a rollout; last it died"):
            await running
    finally:
        running.cancel()
        await engine.stop()
    assert prepared == 2 and kill_cores() == 0
