"""An engine that is started again when it dies, in the same process, with the newest weights.

up ──a process of it ends, a call is not answered──▶ down ──stop, back-off, start, weights, trial──▶ up
                                              └── `max_barren` incarnations in a row without a rollout ──▶ EngineDied
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from producers.rollouts.engine.engine import RolloutEngine, WeightUpdate
from producers.rollouts.engine.errors import EngineDied, EngineError
from producers.rollouts.engine.generation import Generation
from producers.rollouts.engine.settings import EngineSettings
from producers.rollouts.engine.weight_files import WeightFile
from schemas import Sampling
from streams.processes.memory_kills import memory_kills
from streams.runtime.backoff import Backoff

logger = logging.getLogger(__name__)

_ASK_EVERY_S: Final = 5.0
_LOWER: Final = "producer.kv_cache_bytes, producer.max_num_batched_tokens or producer.max_num_seqs"


@dataclass(frozen=True)
class EngineRestarts(Backoff):
    """The back-off between incarnations of the engine; after `max_barren` barren ones in a row it is given up.

    An incarnation is barren if it ended before it completed a rollout: no clock has to say what is quick.
    """

    first_s: float = 0.5
    max_s: float = 30.0
    max_barren: int = 6


class SupervisedEngine:
    """One engine after another: `incarnation` counts them; `prepare` brings a new one's weights up to date."""

    def __init__(self, settings: EngineSettings, policy: EngineRestarts | None = None) -> None:
        self.incarnation = 0
        self.last_failure: str | None = None
        self._memory_kills = memory_kills()
        self.prepare: Callable[[], Awaitable[None]] | None = None
        self._settings = settings
        self._policy = policy or EngineRestarts()
        self._engine = RolloutEngine(settings)
        self._up = asyncio.Event()
        self._down_since = 0.0
        self._up_since: float | None = None
        self._was_up_s = 0.0
        self._restarting = False
        self._completed = 0
        self._barren = 0

    @property
    def version(self) -> int:
        """The weights that compute the next token."""
        return self._engine.version

    def up_s(self) -> float:
        """For how many seconds there has been an engine, all incarnations together."""
        return self._was_up_s + (0.0 if self._up_since is None else time.monotonic() - self._up_since)

    async def start(self) -> None:
        """The first start. EngineStartError: it did not come up, and is not tried again here."""
        await self._engine.start()
        self._set_up()

    async def available(self) -> int:
        """Wait until there is an engine; the number of its incarnation. It has no deadline: `run` raises instead."""
        while not self._up.is_set():
            await self._up.wait()
        return self.incarnation

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, request_id: str, *, seed: int | None = None
    ) -> Generation:
        """See `RolloutEngine.generate`. EngineDied: this request is lost, and the next engine is on its way."""
        engine = self._engine
        try:
            generation = await engine.generate(prompt_ids, sampling, request_id, seed=seed)
        except EngineDied as error:
            if engine is self._engine and self._up.is_set():
                self._set_down()
                self.last_failure = engine.liveness.failure
            engine.liveness.fail(str(error))
            raise
        self._completed += 1
        return generation

    async def score(self, token_ids: Sequence[int], request_id: str, *, priority: int = 0) -> NDArray[np.float32]:
        """See `RolloutEngine.score`. EngineDied: the next engine is on its way."""
        return await self._engine.score(token_ids, request_id, priority=priority)

    async def update_weights(self, version: int, files: Sequence[WeightFile]) -> WeightUpdate:
        """See `RolloutEngine.update_weights`. EngineDied: `prepare` will be asked to do it again."""
        return await self._engine.update_weights(version, files)

    async def run(self) -> None:
        """Watch the engine and start it again, until cancelled. EngineDied: it keeps dying."""
        while True:
            await self._until_dead()
            self._set_down()
            self.last_failure = self._engine.liveness.failure
            self._restarting, self._down_since = True, time.monotonic()
            while not await self._started_again():
                pass
            logger.info("engine up again after %.1f s, weights %d", time.monotonic() - self._down_since, self.version)
            self._restarting = False
            self._set_up()

    async def stop(self) -> None:
        """End every process of the engine. EngineError: one outlived SIGKILL."""
        await self._engine.stop()

    def waits(self) -> list[str]:
        """For `status`."""
        if not self._restarting:
            return []
        down_s = time.monotonic() - self._down_since
        return [f"waits for the engine, which {self._engine.liveness.failure}, to be up again since {down_s:.0f} s"]

    def _set_up(self) -> None:
        self._up_since = time.monotonic()
        self._up.set()

    def _set_down(self) -> None:
        self._was_up_s, self._up_since = self.up_s(), None
        self._up.clear()

    async def _until_dead(self) -> None:
        while True:
            try:
                async with asyncio.timeout(_ASK_EVERY_S):
                    await self._engine.liveness.died.wait()
                return
            except TimeoutError:
                pass
            try:
                await self._engine.health()
            except EngineDied:
                return

    async def _started_again(self) -> bool:
        """Start the next incarnation, to which no requests go yet; False where it failed at once."""
        policy, failure = self._policy, self._engine.liveness.failure
        if (self._memory_kills or 0) < (kills := memory_kills() or 0):
            failure = f"{failure} (the kernel killed it for want of memory: lower {_LOWER})"
            self._memory_kills = kills
        self._barren = 1 if self._completed else self._barren + 1
        self._completed = 0
        if self._barren >= policy.max_barren:
            raise EngineDied(
                f"the engine died {self._barren} times in a row before it completed a rollout; last it {failure}"
            )
        delay_s = policy.delay_s(self._barren)
        logger.error("THE ENGINE %s; starts again in %g s (restart %d)", failure, delay_s, self.incarnation + 1)
        await self._engine.stop()
        await asyncio.sleep(delay_s)
        self.incarnation += 1
        self._engine = RolloutEngine(self._settings)
        try:
            await self._engine.start()
            if self.prepare is not None:
                await self.prepare()
            # An engine that cannot generate at all must not make a suspect of the prompt that happens to come first.
            await self._engine.generate([0], Sampling(max_tokens=1), "trial", ignore_eos=True)
        except EngineError as error:
            self._engine.liveness.fail(str(error))
            return False
        return True
