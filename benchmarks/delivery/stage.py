"""One process of the pipeline: `python -m benchmarks.delivery.stage NAME DIRECTORY BOOTSTRAP PARTITIONS`."""

import cProfile
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.delivery import feed, load
from benchmarks.delivery.shape import Shape
from consumers.batches import service as batches
from consumers.batches.settings import BatchSettings
from consumers.groups import service as groups
from consumers.groups.settings import GroupSettings
from consumers.rewards import service as rewards
from consumers.rewards.settings import RewardSettings
from streams.context import RunContext
from streams.scope import Scope
from streams.service import run_service

RUN: Final = "bench"

Main = Callable[[Scope], Awaitable[None]]


def mains(shape: Shape) -> dict[str, Main]:
    """The services, the three in the middle as they are."""
    reward = RewardSettings(model=shape.model, max_in_flight=512)
    batch = BatchSettings(
        groups_per_batch=shape.groups_per_batch, max_staleness=1 << 30, lookahead=4, token_budget=16_384
    )
    return {
        "load": lambda scope: load.main(scope, shape),
        "rewards": lambda scope: rewards.main(scope, reward),
        "groups": lambda scope: groups.main(scope, GroupSettings()),
        "batches": lambda scope: batches.main(scope, batch),
        "feed": lambda scope: feed.main(scope, shape),
    }


def main() -> int:
    name, directory, bootstrap, partitions = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    shape = msgspec.json.decode((directory / "shape.json").read_bytes(), type=Shape)
    context = RunContext(RUN, directory, bootstrap, partitions, (directory / "blobs").as_uri(), drain_s=1.0)
    profile = cProfile.Profile() if name in os.environ.get("EACHPROMPT_PROFILE", "").split(",") else None
    if profile is None:
        return run_service(name, context, mains(shape)[name])
    code = profile.runcall(run_service, name, context, mains(shape)[name])
    profile.dump_stats(directory / f"{name}.prof")
    return code


if __name__ == "__main__":
    sys.exit(main())
