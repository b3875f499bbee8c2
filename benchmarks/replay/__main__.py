"""Train whole runs with router replay and without it, in several regimes, and draw what it bought.

    python -m benchmarks.replay --dir runs/replay --picture docs/replay.png
    python -m benchmarks.replay --regime 1 --replay off --seeds 2 --dir runs/replay       # one of the runs

Each run is `eachprompt demo` with real vLLM. Every step measures the k3 estimate of KL(engine || trainer) with the
recorded routes and with native routing, whichever of them trains; runs that are in `--dir` already are not repeated.
"""

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path

from benchmarks.replay.model import model_of
from benchmarks.replay.picture import draw
from benchmarks.replay.read import Course, read_course
from benchmarks.replay.regimes import REGIMES, Regime

MODES = ("rollout", "off")


def main() -> int:
    """Run what is missing, print a table, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True, help="directory for the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of prompts and sampling")
    parser.add_argument("--regime", type=int, choices=range(len(REGIMES)), help="only this one")
    parser.add_argument("--replay", choices=MODES, help="only this mode")
    parser.add_argument("--picture", type=Path, help="PNG to draw")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    args.dir.mkdir(parents=True, exist_ok=True)
    courses: list[Course] = []
    for number, mode, seed in itertools.product(range(len(REGIMES)), MODES, args.seeds):
        path = args.dir / f"{number}-{mode}-seed{seed}.json"
        asked = args.regime in (None, number) and args.replay in (None, mode)
        if asked and not path.exists():
            _run(REGIMES[number], mode, seed, args.dir, path)
        if path.exists():
            courses.append(Course(**{**json.loads(path.read_text()), "seed": seed}))
    if args.picture:
        draw(courses, [regime.name for regime in REGIMES], args.picture)
    if args.json:
        print(json.dumps([vars(course) for course in courses]))
        return 0
    for course in courses:
        print(course.line())
    return 0


def _run(regime: Regime, mode: str, seed: int, directory: Path, path: Path) -> None:
    settings = ["dispatcher.evaluate_every=10", *regime.settings]
    settings += [f"learner.router_replay={mode}", "learner.measure_replay_every=1"]
    model = model_of(regime, directory)
    if model is not None:
        settings.append(f"model.path={model}")
    run = directory / path.stem
    command = ["eachprompt", "demo", "--steps", str(regime.steps), "--seed", str(seed), "--dir", str(run), "--json"]
    for setting in settings:
        command += ["--set", setting]
    executable = Path(sys.executable).with_name(command[0])
    done = subprocess.run([executable, *command[1:]], stdout=subprocess.PIPE, text=True, timeout=1800, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}; its logs are in {run / 'logs'}")
    path.write_text(json.dumps(vars(read_course(run, regime.name, mode, seed))))


if __name__ == "__main__":
    sys.exit(main())
