"""How many rollouts of 4 KB a second get from a producer to the learner's hands, and what that costs.

    python -m benchmarks.delivery [--rollouts 40960] [--rate R] [--partitions 2] [--only kafka,redis,bodies] [--keep]

Run it from the top of the repository, on a machine that does nothing else. The load is a recording of a demo's
generation (`recording`, `played`). `kafka`: the real rewards, groups and batches services, each a process, with
transactions, between the load and a learner's feed; CPU time by process. `redis`: the same shape over plain Redis
streams (`redis-server` and the Python package `redis`), without transactions, deduplication or recovery. `bodies`:
routes of 16 MB by claim check, through the same services. Exit code 1 where a body was not moved just once, or an event
loop computed for more than 20 ms.
"""

import argparse
import os
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
    parser.add_argument("--rate", type=float, default=0.0, help="rollouts a second; 0: as fast as they are taken")
    parser.add_argument("--partitions", type=int, default=2)
    parser.add_argument("--only", default="kafka,redis,bodies")
    parser.add_argument("--deadline", type=float, default=300.0, metavar="S")
    parser.add_argument("--dir", type=Path)
    parser.add_argument("--keep", action="store_true", help="leave the directory")
    arguments = parser.parse_args()
    chosen = arguments.only.split(",")
    shape = shape_for(arguments.rollouts, arguments.rate)
    directory = (arguments.dir or Path(tempfile.mkdtemp(prefix="eachprompt-delivery-"))).resolve()
    rates: dict[str, float] = {}
    wrong: list[str] = []
    try:
        if "kafka" in chosen:
            rates["kafka"] = _kafka(directory / "kafka", shape, arguments.partitions, arguments.deadline)
        if "redis" in chosen and (measured := redis_pipeline.measure(directory / "redis", shape)) is not None:
            rates["redis"] = measured.rate
            print(f"redis: {shape.rollouts} rollouts, {measured.rate:.0f} a second, without guarantees")
            _print_cpu(measured.cpu_ms)
        if len(rates) == 2:
            print(f"kafka with guarantees / redis without: {rates['kafka'] / rates['redis']:.2f}")
        if "bodies" in chosen:
            wrong = bodies.measure(directory / "bodies", shape, arguments.partitions, arguments.deadline)
    finally:
        if not arguments.keep:
            shutil.rmtree(directory, ignore_errors=True)
    for sentence in wrong:
        print(f"not as promised: {sentence}")
    return 1 if wrong else 0


def _kafka(directory: Path, shape: Shape, partitions: int, deadline_s: float) -> float:
    load_before = os.getloadavg()[0]
    measured = kafka_pipeline.run(directory, shape, partitions, deadline_s)
    arrival = measured.arrival
    print(
        f"kafka: {arrival.rollouts} rollouts of {arrival.record_bytes:.0f} bytes, {measured.rate:.0f} a second from "
        f"written to the learner's hands (load average before: {load_before:.1f})"
    )
    print(f"  age on arrival: p50 {arrival.p50_ms:.0f} ms, p99 {arrival.p99_ms:.0f} ms")
    _print_cpu(measured.cpu_ms)
    return measured.rate


def _print_cpu(cpu_ms: dict[str, float]) -> None:
    parts = ", ".join(f"{name} {ms:.3f}" for name, ms in cpu_ms.items())
    print(f"  CPU ms a rollout: {sum(cpu_ms.values()):.3f} ({parts})")


if __name__ == "__main__":
    sys.exit(main())
