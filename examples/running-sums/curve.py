"""Print the learning curve of a run from its log, while it runs or afterwards, and draw it.

    python examples/running-sums/curve.py --dir runs/running-sums [--json curve.json] [--picture curve.png]

One line a held-back round: the step after which it was measured, its pass rate, and the mean reward of the batches
since the round before.
"""

import argparse
import json
from pathlib import Path
from statistics import mean

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt

from analysis.history.history import History
from analysis.history.read import audit_of, history_of
from deploy.config.run import load
from deploy.local.open_log import run_log


def main() -> None:
    """Read the log, print the curve, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True, help="run directory")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the curve there")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the curve there")
    arguments = parser.parse_args()
    config, history = load(None, directory=arguments.dir), History()
    with run_log(config) as log:
        audit = audit_of(log, history=history)
        history_of(log, ("prompts", "weights", "applied"), history)
    rows = curve(history)
    print("after step   held back   reward of the batches before")
    for row in rows:
        reward = "-" if row["reward"] is None else f"{row['reward']:.3f}"
        print(f"{row['step']:10d}   {row['held_back']:9.3f}   {reward:>28}")
    print(f"{audit.produced} rollouts, {audit.unaccounted} unaccounted, {audit.trained_twice} trained twice")
    if arguments.json:
        lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
        arguments.json.write_text(f"[\n{lines}\n]\n")
    if arguments.picture:
        draw(history, rows, arguments.picture)


def curve(history: History) -> list[dict[str, float | int | None]]:
    """`step`, `held_back` (pass rate, 0..1) and `reward` of the steps since the round before, by held-back round."""
    rows: list[dict[str, float | int | None]] = []
    before = 0
    for step in sorted(history.evaluations):
        measured = history.evaluated(step)
        if measured is None:
            continue
        rewards = [done.metrics["reward"] for done in history.steps.values() if before < done.step <= step]
        rows.append(
            {
                "step": step,
                "held_back": round(measured[0], 4),
                "reward": round(mean(rewards), 4) if rewards else None,
            }
        )
        before = step
    return rows


def draw(history: History, rows: list[dict[str, float | int | None]], path: Path) -> None:
    """Held-back pass rate and mean reward of each batch, over the steps, as a PNG."""
    steps = sorted(history.steps)
    figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
    axes.plot(
        steps, [history.steps[step].metrics["reward"] for step in steps], color="#9aa5b1", label="reward of the batch"
    )
    axes.plot(
        [row["step"] for row in rows],
        [row["held_back"] for row in rows],
        "o-",
        color="#2f6fb0",
        label="held-back pass rate",
    )
    axes.set(xlabel="step", ylim=(0, 1))
    axes.grid(color="#e6eaee")
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
