"""The gate before the engine: who waits, who is let in, and with what it ends."""

import asyncio

import pytest

from producers.rollouts.engine.errors import EngineDied
from producers.rollouts.quarantine import Quarantine
from streams.errors import Poison


class Deaths:
    """An engine of which the test says when it dies; a rollout in flight waits for that, or is generated at once."""

    def __init__(self, quarantine: Quarantine) -> None:
        self.quarantine = quarantine
        self.incarnation = 0
        self.doomed: set[str] = set()
        self.order: list[str] = []
        self._death = asyncio.Event()

    async def generate(self, rollout: str) -> None:
        while True:
            async with self.quarantine.attempt(rollout, rollout.split(".")[0]) as attempt:
                self.order.append(rollout)
                if rollout not in self.doomed:
                    return
                attempt.lost, attempt.reason = self.incarnation, "ended with signal 9"
                await self._death.wait()

    async def die(self, *doomed_next: str) -> None:
        """It dies; of `doomed_next` it will die again."""
        await settle()
        self.doomed = set(doomed_next)
        death, self._death = self._death, asyncio.Event()
        self.incarnation += 1
        death.set()
        await settle()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.fixture
def quarantine() -> Quarantine:
    return Quarantine(64, lambda: 0.0)


async def test_others_wait_while_suspects_are_tried_and_bear_witness(quarantine: Quarantine) -> None:
    engine = Deaths(quarantine)
    engine.doomed = {"a.0", "b.0"}
    async with asyncio.timeout(10):
        tasks = [asyncio.create_task(engine.generate(rollout)) for rollout in ("a.0", "b.0")]
        await engine.die("a.0", "b.0")
        await engine.die("a.0", "b.0")
        assert quarantine.waits()[0].startswith("the engine died twice, 2 prompts may be why: tries a.0 apart, 1")
        assert quarantine.suspected == 2 and quarantine.limit == 0
        tasks.append(asyncio.create_task(engine.generate("c.0")))
        await settle()
        assert engine.order == ["a.0", "b.0", "a.0", "b.0", "a.0"]
        await engine.die()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[0], Poison) and "died 3 times while this prompt was in flight" in str(results[0])
    assert results[1:] == [None, None] and engine.order[5] == "c.0" and quarantine.waits() == []


async def test_where_all_are_generated_apart_it_is_the_load(
    quarantine: Quarantine, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Deaths(quarantine)
    rollouts = {f"{prompt}.0" for prompt in "abcdefgh"}
    engine.doomed = rollouts
    async with asyncio.timeout(10):
        tasks = [asyncio.create_task(engine.generate(rollout)) for rollout in sorted(rollouts)]
        await engine.die(*rollouts)
        await engine.die()
        await asyncio.gather(*tasks)
    assert quarantine.limit == 4 and not quarantine.suspected
    assert quarantine.waits() == [
        "the engine died of its load: at most 4 rollouts at once, more after every minute without a death; 0 wait"
    ]
    assert "each prompt that was in flight was generated apart: 4 rollouts at once" in caplog.text


async def test_an_engine_that_dies_with_any_prompt_alone_is_at_fault(quarantine: Quarantine) -> None:
    engine = Deaths(quarantine)
    rollouts = ["a.0", "a.1", "b.0", "c.0", "d.0"]
    engine.doomed = set(rollouts)
    tasks = []
    async with asyncio.timeout(10):
        tasks = [asyncio.create_task(engine.generate(rollout)) for rollout in rollouts]
        for _ in range(5):
            await engine.die(*rollouts)
        ended = [task for task in tasks if task.done()]
        assert len(ended) == 1
        with pytest.raises(EngineDied, match=r"with any prompt, tried alone were a, b, c; last: ended with signal 9"):
            await ended[0]
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert not any(isinstance(result, Poison) for result in results)


async def test_a_cancelled_suspect_holds_up_nobody(quarantine: Quarantine) -> None:
    engine = Deaths(quarantine)
    engine.doomed = {"a.0", "b.0"}
    async with asyncio.timeout(10):
        suspects = [asyncio.create_task(engine.generate(rollout)) for rollout in ("a.0", "b.0")]
        await engine.die("a.0", "b.0")
        await engine.die("a.0", "b.0")
        assert quarantine.suspected == 2
        for suspect in suspects:
            suspect.cancel()
        with pytest.raises(asyncio.CancelledError):
            await suspects[0]
        await engine.generate("c.0")
    assert not quarantine.suspected
