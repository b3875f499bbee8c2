"""One process of the pipeline: `python -m benchmarks.delivery.stage NAME DIRECTORY BOOTSTRAP PARTITIONS`."""

import cProfile
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.delivery import feed, load, loops
from benchmarks.delivery.shape import Shape
from consumers.batches import service as batches
from consumers.batches.settings import BatchSettings
from consumers.groups import service as groups
from consumers.groups.settings import GroupSettings
from consumers.rewards import service as rewards
from consumers.rewards.settings import RewardSettings
from streams.context import RunContext
from streams.runtime.service import run_service
from streams.runtime.service_context import ServiceContext

RUN: Final = "bench"

Main = Callable[[ServiceContext], Awaitable[None]]


def mains(shape: Shape) -> dict[str, Main]:
    """The services, the three in the middle as they are."""
    reward = RewardSettings(model=shape.model, max_in_flight=512)
    batch = BatchSettings(
        groups_per_batch=shape.groups_per_batch,
        max_staleness=1 << 30,
        lookahead=4,
        token_budget=max(16_384, shape.tokens),
    )
    return {
        "load": lambda service: load.main(service, shape),
        "rewards": lambda service: rewards.main(service, reward),
        "groups": lambda service: groups.main(service, GroupSettings()),
        "batches": lambda service: batches.main(service, batch),
        "feed": lambda service: feed.main(service, shape),
        "idle": loops.idle,
    }


def main_of(name: str, shape: Shape) -> Main:
    """The service `name`, its loop watched where bodies are in flight; else the watch would cost 3 % of a core."""
    main_of_stage = mains(shape)[name]
    if not shape.tokens:
        return main_of_stage

    async def watched(service: ServiceContext) -> None:
        service.spawn(loops.watched(service, name), "loop")
        await main_of_stage(service)

    return watched


def main() -> int:
    name, directory, bootstrap, partitions = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    shape = msgspec.json.decode((directory / "shape.json").read_bytes(), type=Shape)
    context = RunContext(RUN, directory, bootstrap, partitions, (directory / "blobs").as_uri(), drain_s=1.0)
    profile = cProfile.Profile() if name in os.environ.get("EACHPROMPT_PROFILE", "").split(",") else None
    if profile is None:
        return run_service(name, context, main_of(name, shape))
    code = profile.runcall(run_service, name, context, main_of(name, shape))
    profile.dump_stats(directory / f"{name}.prof")
    return code


if __name__ == "__main__":
    sys.exit(main())
