"""The load: finished rollouts of about 4 KB, as a producer of a 12-layer model would write them.

Groups of 8 prompts with a reference; every second member is right, so that every group has variance and every rollout
must reach the learner. The number outstanding is bounded by the steps that were done, as the dispatcher bounds it.
"""

import asyncio
import time
from collections.abc import Awaitable
from typing import Any, Final

import msgspec
import numpy as np

from benchmarks.delivery.shape import Shape
from schemas import (
    EngineInfo,
    Event,
    NDArray,
    Ref,
    RolloutCompleted,
    RolloutTimings,
    Routes,
    Sampling,
    StepCompleted,
    WeightSpan,
)
from streams.follow import follow
from streams.log import enqueue
from streams.record import Output, Record
from streams.scope import Scope

_PROMPT: Final = 10
_RESPONSE: Final = 100
_LAYERS: Final = 12
_TOP_K: Final = 2


def template(right: bool, shape: Shape) -> RolloutCompleted:
    """A rollout whose response is 100 tokens and ends right or wrong; 4 KB on the log."""
    response = np.full(_RESPONSE, shape.answer, dtype="u4")
    response[-3:] = (shape.equals, shape.answer if right else shape.wrong, shape.eos)
    routes = np.random.default_rng(0).integers(0, 8, (_PROMPT + _RESPONSE, _LAYERS, _TOP_K), dtype=np.uint8)
    return RolloutCompleted(
        rollout_id="", group_id="", prompt_id="", index=0, attempt=0, producer_id="producer-0",
        request=Ref("prompts", 0, 0), task="sums", samples=shape.samples, verifier="exact_match",
        reference={"answer": shape.answer_text, "after": "="}, deadline_s=4e9,
        prompt_ids=NDArray.of(np.arange(_PROMPT, dtype="u4")), response_ids=NDArray.of(response),
        logprobs=NDArray.of(np.full(_RESPONSE, -0.5, dtype="f4")), spans=(WeightSpan(0, 0),),
        sampling=Sampling(max_tokens=256), finish_reason="stop",
        engine=EngineInfo(name="recorded", version="1", model="tiny"),
        timings=RolloutTimings(received_s=0, started_s=0, first_token_s=0, finished_s=0), requested_s=0.0, time_s=0.0,
        routes=Routes(experts=8, shape=routes.shape, dtype="u1", sentinel=255, data=NDArray.of(routes)),
    )  # fmt: skip


class Load:
    """Writes the rollouts."""

    def __init__(self, scope: Scope, shape: Shape) -> None:
        self._scope = scope
        self._shape = shape
        self._templates = (template(False, shape), template(True, shape))
        self._trained = 0
        self._room = asyncio.Event()

    async def run(self) -> None:
        """Write them all and wait until the broker has them."""
        self._scope.spawn(follow(self._scope, ["steps"], on=self._on_step), "steps")
        self._scope.ready()
        producer = self._scope.log.producer()
        await producer.start()
        written = 0
        deliveries: list[Awaitable[Any]] = []
        for group in range(self._shape.rollouts // self._shape.samples):
            while written - self._trained >= self._shape.outstanding:
                self._room.clear()
                await self._room.wait()
            for index in range(self._shape.samples):
                delivery = await enqueue(self._scope.log, producer, self._output(group, index))
                deliveries.append(delivery)
            written += self._shape.samples
            if len(deliveries) >= 512:
                await asyncio.gather(*deliveries)
                deliveries.clear()
        await asyncio.gather(*deliveries)
        await producer.stop()
        await self._scope.stopping.wait()

    def _output(self, group: int, index: int) -> Output:
        name = f"{group:016x}.0"
        event = msgspec.structs.replace(
            self._templates[index % 2],
            rollout_id=f"{name}.{index}", group_id=name, prompt_id=name[:-2], index=index, time_s=time.time(),
        )  # fmt: skip
        return Output("rollouts", event, key=name)

    def _on_step(self, event: Event, record: Record) -> None:
        if isinstance(event, StepCompleted):
            self._trained += event.sequences
            self._room.set()


async def main(scope: Scope, shape: Shape) -> None:
    """The service."""
    await Load(scope, shape).run()
