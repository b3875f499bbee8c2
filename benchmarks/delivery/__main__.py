"""How many rollouts of 4 KB a second get from a producer to the learner's hands, and what that costs.

    python -m benchmarks.delivery [--rollouts 40960] [--partitions 2] [--only kafka,redis,bodies] [--keep]

Run it from the top of the repository, on a machine that does nothing else. `kafka`: the real rewards, groups and
batches services, each a process, with transactions, between a load generator and a learner's feed; CPU time by process.
`redis`: the same shape over plain Redis streams (`redis-server` and the Python package `redis`), without transactions,
deduplication or recovery. `bodies`: routes of 16 MB by claim check.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks.delivery import bodies, kafka_pipeline, redis_pipeline
from benchmarks.delivery.shape import Shape
from benchmarks.delivery.vocabulary import shape_for


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=40_960, help="rounded down to whole batches of 512")
    parser.add_argument("--partitions", type=int, default=2)
    parser.add_argument("--only", default="kafka,redis,bodies")
    parser.add_argument("--deadline", type=float, default=300.0, metavar="S")
    parser.add_argument("--dir", type=Path)
    parser.add_argument("--keep", action="store_true", help="leave the directory")
    arguments = parser.parse_args()
    chosen = arguments.only.split(",")
    shape = shape_for(arguments.rollouts)
    directory = arguments.dir or Path(tempfile.mkdtemp(prefix="eachprompt-delivery-"))
    rates: dict[str, float] = {}
    try:
        if "kafka" in chosen:
            rates["kafka"] = _kafka(directory / "kafka", shape, arguments.partitions, arguments.deadline)
        if "redis" in chosen and (rate := redis_pipeline.measure(directory / "redis", shape)) is not None:
            rates["redis"] = rate
        if len(rates) == 2:
            print(f"kafka with guarantees / redis without: {rates['kafka'] / rates['redis']:.2f}")
        if "bodies" in chosen:
            bodies.measure(directory / "bodies")
    finally:
        if not arguments.keep:
            shutil.rmtree(directory, ignore_errors=True)
    return 0


def _kafka(directory: Path, shape: Shape, partitions: int, deadline_s: float) -> float:
    measured = kafka_pipeline.run(directory, shape, partitions, deadline_s)
    arrival = measured.arrival
    print(f"kafka: {arrival.rollouts} rollouts, {measured.rate:.0f} a second from written to the learner's hands")
    print(f"  age on arrival: p50 {arrival.p50_ms:.0f} ms, p99 {arrival.p99_ms:.0f} ms")
    parts = ", ".join(f"{name} {ms:.3f}" for name, ms in measured.cpu_ms.items())
    print(f"  CPU ms a rollout: {sum(measured.cpu_ms.values()):.3f} ({parts})")
    return measured.rate


if __name__ == "__main__":
    sys.exit(main())
