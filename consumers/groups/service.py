"""The aggregator as a service: one processor and one transactional producer per partition of `scores`."""

import time
from typing import Final

from consumers.groups.aggregate import Aggregator
from consumers.groups.memory import SKEW_S
from consumers.groups.settings import GroupSettings
from schemas.services import SERVICES
from streams.errors import StreamsError
from streams.log.tail import Tail
from streams.runtime.service_context import ServiceContext
from streams.stages.processor import ProcessorSpec
from streams.stages.runner import run_processor

GROUPS: Final = SERVICES["groups"]
_LOOK_S: Final = 1.0


async def main(service: ServiceContext, settings: GroupSettings) -> None:
    """Serve until the service is asked to stop. Exactly once: outputs and offsets are one transaction."""
    spec = ProcessorSpec(
        stage=GROUPS.name,
        input=GROUPS.input,
        own_outputs=Tail(topic=GROUPS.output, horizon_s=settings.remember_s + SKEW_S),
        extra_inputs=GROUPS.extra_inputs,
    )
    service.spawn(_watch_clock(service), "groups watches the clock")
    await run_processor(service, spec, lambda partition: Aggregator(settings, time.time() - settings.remember_s))


def clock_step(then: tuple[float, float], now: tuple[float, float]) -> float:
    """Seconds by which the wall clock was set between two readings of (wall clock, monotonic clock)."""
    return (now[0] - then[0]) - (now[1] - then[1])


async def _watch_clock(service: ServiceContext) -> None:
    """End the service when the clock is set by more than `SKEW_S`: a restart reads its tail by the new time.

    The clock at its start decided how much it read, and so which groups it may open. With a clock a day ahead at that
    time, every group would be refused for a day.
    """
    then = (time.time(), time.monotonic())
    while not await service.until_stopped(_LOOK_S):
        step_s = clock_step(then, (time.time(), time.monotonic()))
        if abs(step_s) > SKEW_S:
            raise StreamsError(f"the clock was set by {step_s:.0f} s since this service began: it starts again")
