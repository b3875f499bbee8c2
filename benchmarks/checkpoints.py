"""For how long a checkpoint blocks the step, and how long it takes beside it.

    python -m benchmarks.checkpoints [--ranks 2] [--gib 0.5] [--rounds 4] [--json]

Every rank is a process of its own over gloo, with a state of the given size sharded over them as FSDP does it. "copy"
is what the step waits for; "train meanwhile" is how much of a thread that multiplies matrices gets done while the copy
is written, against the same thread alone; "write" is fsync, digests and rename included; "verify" and "load" are what a
start pays. A copy without the stager's memory of the last one is given for comparison. Medians, of the slowest rank.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import Shard, distribute_tensor

from learner.checkpoint.manager import CheckpointManager
from learner.checkpoint.manifest import Position
from learner.checkpoint.retention import Retention
from learner.ranks.group import RankGroup, join_group, leave_group
from learner.ranks.lifeline import rendezvous

ROW_BYTES = 4 * 1024
TENSORS = 16


def state_of(ranks: RankGroup, gib: float) -> dict[str, Tensor]:
    """float32 tensors of `gib` in all, dealt by rows."""
    rows = int(gib * 2**30 / ROW_BYTES / TENSORS)
    torch.manual_seed(0)
    return {
        f"layer.{index}": distribute_tensor(torch.randn(rows, ROW_BYTES // 4), ranks.mesh, [Shard(0)])
        for index in range(TENSORS)
    }


def products(until: Callable[[], bool]) -> float:
    """Matrix products a second until asked to stop."""
    matrix = torch.randn(256, 256)
    began, done = time.perf_counter(), 0
    while not until():
        matrix @ matrix
        done += 1
    return done / (time.perf_counter() - began)


def measure(rank: int, world: int, gib: float, rounds: int, directory: Path) -> dict[str, float]:
    """Seconds, and the share of its speed that training keeps."""
    torch.set_num_threads(1)
    ranks = join_group(rendezvous(rank, world, directory, 60.0), 120.0)
    checkpoints = CheckpointManager(directory / "checkpoints", "m", Retention(2), ranks)
    state = state_of(ranks, gib)
    times: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        ranks.exchange(b"")
        began = time.perf_counter()
        result = work()
        times.setdefault(name, []).append(time.perf_counter() - began)
        return result

    alone_until = time.perf_counter() + 1.0
    alone = products(lambda: time.perf_counter() > alone_until)
    for step in range(rounds):
        timed("copy anew", lambda: {name: tensor.clone() for name, tensor in state.items()})
        staged = timed("copy" if step else "copy, the first", lambda: checkpoints.stage(state))

        def save(step: int = step, staged: Any = staged) -> None:
            timed("write", lambda: checkpoints.save(Position(step=step), staged))

        writing = threading.Thread(target=save)
        writing.start()
        rate = products(lambda: not writing.is_alive())  # noqa: B023
        writing.join()
        times.setdefault("train meanwhile", []).append(rate / alone)
    path, manifest = timed("verify", checkpoints.newest)
    timed("load", lambda: checkpoints.load(path, manifest, state))
    medians = {name: statistics.median(values) for name, values in times.items()}
    said = [json.loads(part) for part in ranks.exchange(json.dumps(medians).encode())]
    leave_group()
    return {name: (min if name == "train meanwhile" else max)(each[name] for each in said) for name in medians}


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--gib", type=float, default=0.5, help="size of the whole state (default 0.5)")
    parser.add_argument("--rounds", type=int, default=4, help="checkpoints (default 4)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank is not None:
        found = measure(arguments.rank, arguments.ranks, arguments.gib, arguments.rounds, arguments.directory)
        if arguments.rank == 0:
            print(json.dumps(found))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "benchmarks.checkpoints", *sys.argv[1:], "--directory", scratch, "--rank"]
        children = [
            subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, text=True)
            for rank in range(arguments.ranks)
        ]
        outputs = [child.communicate(timeout=600)[0] for child in children]
    if any(child.returncode for child in children):
        return 1
    found = json.loads(outputs[0].splitlines()[-1])
    if arguments.json:
        print(json.dumps(found))
        return 0
    for name, value in found.items():
        print(f"{name:16} {100 * value:8.0f} %" if name == "train meanwhile" else f"{name:16} {1000 * value:8.0f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
