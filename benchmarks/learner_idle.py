"""How long a learner that always has a batch on the log waits, and whether the same log gives the same weights again.

    eachprompt demo --dir runs/recorded
    python -m benchmarks.learner_idle --dir runs/recorded

Copies the run, takes the learner's checkpoints away and starts the learner alone, all ranks of it, on the topics as
they are: every batch is there, so what it waits is what fetching and decoding could not hide behind training. Twice,
to compare the digests of the last weights.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from deploy.config.run import load
from deploy.local.open_log import run_log
from schemas import StepCompleted, WeightsPublished

DEADLINE_S = 600.0


def main() -> int:
    """Print the shares and the digests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True, help="directory of a finished run")
    parser.add_argument("--times", type=int, default=2)
    args = parser.parse_args()
    starts = [_train(args.dir) for _ in range(args.times)]
    digests = [start.pop("digests") for start in starts]
    for start in starts:
        print(json.dumps(start))
    if len(digests) < 2:
        return 0
    same = all(digest == digests[0] for digest in digests)
    print(f"the same weights, bit for bit: {digests[0]}" if same else f"DIFFERENT: {digests}")
    return 0 if same else 1


def _train(recorded: Path) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch) / "run"
        shutil.copytree(recorded, directory, ignore=shutil.ignore_patterns("checkpoints", "traces", "health", "pids"))
        config = load(directory / "run.toml", directory=directory, overrides=[])
        with run_log(config) as log:
            before = sum(1 for _ in log.events("steps"))
            weights_before = sum(1 for _ in log.events("weights"))
            command = [str(Path(sys.executable).with_name("eachprompt")), "run", "learner", "--dir", str(directory)]
            with (directory / "learner.log").open("w") as output:
                learner = subprocess.Popen(command, stdout=output, stderr=output)
                deadline = time.monotonic() + DEADLINE_S
                try:
                    while sum(1 for _ in log.events("steps")) < before + config.run.steps:
                        if learner.poll() is not None or time.monotonic() > deadline:
                            raise SystemExit((directory / "learner.log").read_text()[-3000:])
                        # Its end, or another look at the log: a tool has nothing else to wait on.
                        with suppress(subprocess.TimeoutExpired):
                            learner.wait(2)
                finally:
                    learner.terminate()
                    learner.wait(60)
            steps = [event for event, _ in log.events("steps") if isinstance(event, StepCompleted)][before:]
            weights = [event for event, _ in log.events("weights") if isinstance(event, WeightsPublished)]
        if len(weights) <= weights_before:
            raise SystemExit("the learner published no weights, so that there is nothing to compare")
        fed = steps[1:]
        shares = [step.waited_s / (step.waited_s + step.wall_s) for step in fed]
        return {
            "steps": len(steps),
            "step_p50_s": round(statistics.median(step.wall_s for step in fed), 3),
            "idle_share": round(
                sum(step.waited_s for step in fed) / sum(step.waited_s + step.wall_s for step in fed), 4
            ),
            "idle_share_worst_step": round(max(shares), 4),
            "digests": [file.blob.digest for file in weights[-1].files],
        }


if __name__ == "__main__":
    sys.exit(main())
