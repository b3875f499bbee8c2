"""The producer's half of the canary: score the published set under the weights just applied, and report the scores."""

import asyncio
import logging
import time
from typing import Final

import numpy as np

from producers.rollouts.engine.engine import RolloutEngine
from producers.rollouts.engine.errors import EngineDied, PromptRefused
from producers.rollouts.engine.supervised import SupervisedEngine
from schemas import Canary, NDArray
from schemas.events import CanaryScored, WeightsApplied, report_key
from streams.log.clients import Writer
from streams.record import Output

logger = logging.getLogger(__name__)

FIRST: Final = -1
"""Priority of the set's sequences: they take the next free places in the engine, ahead of every rollout that waits."""


async def scores(engine: RolloutEngine | SupervisedEngine, canary: Canary, name: str) -> NDArray:
    """Log-probs f4 `[sequences, tokens - 1]` of the set under the present weights, 0 behind the end of a sequence.

    Raises as `RolloutEngine.score`.
    """
    found = await asyncio.gather(
        *(engine.score(row, f"{name}-{number}", priority=FIRST) for number, row in enumerate(canary.rows()))
    )
    scored = np.zeros(canary.logprobs.shape, np.float32)
    for number, logprobs in enumerate(found):
        scored[number, : len(logprobs)] = logprobs
    return NDArray.of(scored)


class CanaryScorer:
    """Scores what was applied last; while it does so, newer weights are not held up and make its figures void."""

    def __init__(self, engine: SupervisedEngine, writer: Writer) -> None:
        self._engine = engine
        self._writer = writer
        self._due: tuple[Canary, WeightsApplied] | None = None
        self._wake = asyncio.Event()

    def applied(self, canary: Canary | None, applied: WeightsApplied) -> None:
        """Weights are in use; `applied` is on the log already."""
        if canary is not None:
            self._due = canary, applied
            self._wake.set()

    async def run(self) -> None:
        """Until cancelled. StreamsError: the log does not take the figures."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            due, self._due = self._due, None
            if due is not None:
                await self._score(*due)

    async def _score(self, canary: Canary, applied: WeightsApplied) -> None:
        try:
            logprobs = await scores(self._engine, canary, f"canary-{applied.version}-{self._engine.incarnation}")
        except EngineDied as error:
            logger.warning("the canary of weights %d was not scored: %s", applied.version, error)
            return
        except PromptRefused as error:
            logger.error(
                "the canary cannot be scored by this engine, weights %d go unchecked: %s", applied.version, error
            )
            return
        # Part of the figures may be of newer weights, whose own canary is due by now.
        if self._engine.version == applied.version:
            scored = CanaryScored(
                producer_id=applied.producer_id,
                version=applied.version,
                logprobs=logprobs,
                time_s=time.time(),
                set_digest=canary.set_digest(),
            )
            await self._writer.write(Output("applied", scored, key=report_key(scored)))
