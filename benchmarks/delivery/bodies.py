"""Routes of 16 MB by claim check, through every stage: who read and wrote how much, and what the event loops saw."""

from pathlib import Path
from typing import Final

import msgspec

from benchmarks.delivery import disk, kafka_pipeline
from benchmarks.delivery.kafka_pipeline import CONTROL, Measured
from benchmarks.delivery.shape import Shape

TOKENS: Final = 32_768
ROLLOUTS: Final = 48
BOUND_MS: Final = 20.0
_SHARE: Final = 0.02
"""Bytes that a stage may move for a body without its having been a body: positions, health, the log's own records."""

_RECORD_SHARE: Final = 0.1
"""Those that hold a record of 0.26 MB in their hands, several times over sockets."""


def shape_of(shape: Shape) -> Shape:
    """The same load with 32,768 tokens each: 15.7 MB of routes beside 0.26 MB of ids and log-probs."""
    return msgspec.structs.replace(shape, rollouts=ROLLOUTS, groups_per_batch=1, outstanding=ROLLOUTS, tokens=TOKENS)


def measure(directory: Path, shape: Shape, partitions: int, deadline_s: float) -> list[str]:
    """Prints what was measured; what is not as promised, in sentences."""
    for what, compared in disk.measure(directory / "disk").items():
        print(f"bodies of 16 MB, the store alone, {what}: {compared}")
    measured = kafka_pipeline.run(directory / "pipeline", shape_of(shape), partitions, deadline_s)
    routes_bytes = measured.arrival.routes_bytes
    print(
        f"  through all stages: {measured.arrival.rollouts} rollouts, "
        f"{routes_bytes / measured.seconds / 1e6:.0f} MB/s from the producer's hands to the learner's tensors"
    )
    for name, used in measured.used.items():
        read, written = used.read_bytes / routes_bytes, used.written_bytes / routes_bytes
        print(f"  {name:8s} read {read:.3f} and wrote {written:.3f} of the bodies' bytes")
    for name, loop in sorted(measured.loops.items()):
        print(
            f"  {name:8s} event loop: at most {loop.cpu_ms:.1f} ms CPU between two ticks, {loop.late_ms:.1f} ms late, "
            f"{loop.late_by_itself_ms:.1f} of it not waiting for a processor ({loop.ticks} ticks)"
        )
    return [*_moved_once(measured), *_blocked(measured)]


def _moved_once(measured: Measured) -> list[str]:
    """Written once by the load, read once by the feed, and touched by nobody else."""
    wrong = []
    for name, used in measured.used.items():
        read, written = (moved / measured.arrival.routes_bytes for moved in (used.read_bytes, used.written_bytes))
        expected = (1.0 if name == "feed" else 0.0, 1.0 if name == "load" else 0.0)
        for what, found, times in (("read", read, expected[0]), ("wrote", written, expected[1])):
            if not times - _SHARE <= found <= times + _RECORD_SHARE:
                wrong.append(f"{name} {what} {found:.2f} of the bodies' bytes and not {times:.0f}")
    return wrong


def _blocked(measured: Measured) -> list[str]:
    return [
        f"the event loop of {name} computed for {loop.cpu_ms:.1f} ms without a pause, more than {BOUND_MS:g}"
        for name, loop in measured.loops.items()
        if name != CONTROL and loop.cpu_ms > BOUND_MS
    ]
