"""Figures of a finished run, from its log: tokens a second while training continues, step times, weight pauses.

    python benchmarks/finished_run.py --dir runs/demo-20261122-200000

Rates are over the time between the first and the last step; the peak is the best five seconds of it.
"""

import argparse
import itertools
import json
import statistics
from pathlib import Path

from deploy.config.run import load
from deploy.local.open_log import run_log
from schemas import RolloutCompleted, StepCompleted, WeightsApplied


def main() -> None:
    """Read the log of the run directory and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True, help="run directory")
    directory = parser.parse_args().dir
    config = load(directory / "run.toml", directory=directory, overrides=[])
    with run_log(config) as log:
        steps = [event for event, _ in log.events("steps") if isinstance(event, StepCompleted)]
        applied = [event for event, _ in log.events("applied") if isinstance(event, WeightsApplied)]
        done = [
            (event.time_s, event.response_ids.shape[0])
            for event, _ in log.events("rollouts")
            if isinstance(event, RolloutCompleted)
        ]
    first_s, last_s = steps[0].time_s, steps[-1].time_s
    tokens = sum(count for time_s, count in done if first_s <= time_s < last_s)
    windows: dict[int, int] = {}
    for time_s, count in done:
        if first_s <= time_s < last_s:
            windows[int((time_s - first_s) / 5)] = windows.get(int((time_s - first_s) / 5), 0) + count
    between_s = [b.time_s - a.time_s for a, b in itertools.pairwise(steps)]
    pauses_ms = sorted(1000 * event.pause_s for event in applied if event.version > 0)
    figures = {
        "steps": len(steps),
        "rollouts_per_step": round(statistics.mean(step.sequences for step in steps), 1),
        "between_steps_p50_s": round(statistics.median(between_s), 2),
        "per_64_rollouts_p50_s": round(
            statistics.median(between_s) * 64 / statistics.mean(s.sequences for s in steps), 2
        ),
        "learner_step_p50_s": round(statistics.median(step.wall_s for step in steps), 2),
        "tokens_per_s_while_training": round(tokens / (last_s - first_s)),
        "tokens_per_s_peak_5_s": round(max(windows.values()) / 5),
        "pause_p50_ms": round(statistics.median(pauses_ms), 1),
        "pause_p95_ms": round(pauses_ms[int(0.95 * (len(pauses_ms) - 1))], 1),
        "pause_max_ms": round(pauses_ms[-1], 1),
        "pauses_over_100_ms": sum(pause > 100 for pause in pauses_ms),
    }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
