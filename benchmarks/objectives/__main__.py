"""Train the same start on one recorded stream with several objectives, three seeds each, and draw the curves.

    eachprompt demo --dir runs/recorded
    python -m benchmarks.objectives --dir runs/recorded --picture docs/objectives.png

The stream is what the run's learner trained on, in its order (seed 0), or with the groups of every four batches dealt
anew (other seeds). All trainings share optimizer, schedule, truncated importance sampling and router replay; each batch
is used for `--updates` optimizer updates, because with one update nothing clips and the objectives coincide. The pass
rate is sampled at temperature 1 on the held-back prompts. The rollouts are those of the run's own policy: after the
first steps each training is off-policy, which is what replaying a log means.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from benchmarks.objectives.picture import Curve, draw
from benchmarks.objectives.stream import read_stream

OBJECTIVES = {
    "ESPO": ("espo", {}),
    "ESPO, α = 0.2": ("espo", {"alpha": 0.2}),
    "GSPO": ("gspo", {}),
    "GRPO": ("grpo", {}),
}


def main() -> int:
    """Print a table and, where asked, draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True, help="directory of a finished run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=4, help="optimizer updates a batch")
    parser.add_argument("--every", type=int, default=5, help="batches between evaluations")
    parser.add_argument("--samples", type=int, default=2, help="samples a held-back prompt")
    parser.add_argument("--at-once", type=int, default=2, help="trainings side by side, one thread each")
    parser.add_argument("--picture", type=Path, help="PNG to draw")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        stream = Path(scratch) / "stream.msgpack"
        recorded = read_stream(args.dir)
        stream.write_bytes(msgspec.msgpack.encode(recorded))
        print(f"{len(recorded.batches)} batches, {len(recorded.rollouts)} rollouts", file=sys.stderr)

        def train(label: str, seed: int) -> Curve:
            name, settings = OBJECTIVES[label]
            command = [sys.executable, "-m", "benchmarks.objectives.train", "--stream", str(stream)]
            options = {
                "objective": name,
                "settings": json.dumps(settings),
                "seed": seed,
                "updates": args.updates,
                "every": args.every,
                "samples": args.samples,
            }
            for option, value in options.items():
                command += [f"--{option}", str(value)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=3600, check=True)
            curve = Curve(label, seed, [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")])
            print(f"{label}, seed {seed}: {curve.points[-1]['pass_rate']:.3f}", file=sys.stderr, flush=True)
            return curve

        with ThreadPoolExecutor(args.at_once) as pool:
            jobs = [pool.submit(train, label, seed) for seed in range(args.seeds) for label in OBJECTIVES]
            curves = [job.result() for job in jobs]
    if args.picture:
        draw(curves, args.updates, args.picture)
    if args.json:
        print(json.dumps({"wall_s": time.monotonic() - started, "curves": [vars(curve) for curve in curves]}))
        return 0
    for label in OBJECTIVES:
        own = [curve.points for curve in curves if curve.label == label]
        clipped = [statistics.mean(points[at].get("clip_fraction", 0.0) for points in own) for at in (1, -1)]
        middle, last = ([points[at]["pass_rate"] for points in own] for at in (len(own[0]) // 2, -1))
        print(
            f"{label:14} start {statistics.mean(points[0]['pass_rate'] for points in own):.3f}  "
            f"step {own[0][len(own[0]) // 2]['step']} {' '.join(f'{rate:.3f}' for rate in middle)}  "
            f"step {own[0][-1]['step']} {' '.join(f'{rate:.3f}' for rate in last)}  mean {statistics.mean(last):.3f}  "
            f"clipped {clipped[0]:.2f} to {clipped[1]:.2f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
