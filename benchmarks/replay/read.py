"""A finished run's course, read from its log."""

import json
import statistics
from dataclasses import dataclass
from pathlib import Path

from deploy.config.run import load
from deploy.local.open_log import run_log
from schemas import StepCompleted


@dataclass
class Course:
    """One run: by step, k3 with recorded and with native routes, share of flipped decisions, gradient norm, reward.

    `pass_rates` are (step, held-back pass rate).
    """

    regime: str
    mode: str
    k3_on: list[float]
    k3_off: list[float]
    flips: list[float]
    grad_norm: list[float]
    reward: list[float]
    pass_rates: list[tuple[int, float]]
    seed: int = 0

    def line(self) -> str:
        """For the table: first and last quarter of the run."""
        quarter = max(1, len(self.k3_on) // 4)

        def ratio(part: slice) -> str:
            off, on = statistics.median(self.k3_off[part]), statistics.median(self.k3_on[part])
            return f"k3 {off:.1e} native, {on:.1e} replayed ({off / max(on, 1e-12):.2f}x)"

        start, end = slice(0, quarter), slice(-quarter, None)
        return (
            f"{self.regime:50} trained {'with' if self.mode == 'rollout' else 'without'} replay, seed {self.seed}\n"
            f"    first quarter: {ratio(start)}, flips {statistics.mean(self.flips[start]):.4f}\n"
            f"    last quarter:  {ratio(end)}, flips {statistics.mean(self.flips[end]):.4f}\n"
            f"    gradient norm p50 {statistics.median(self.grad_norm):.2f}, worst {max(self.grad_norm):.2f}; "
            f"pass rate {' '.join(f'{rate:.3f}@{step}' for step, rate in self.pass_rates)}"
        )


def read_course(directory: Path, regime: str, mode: str, seed: int) -> Course:
    """Read `steps` of the run in `directory`, and its summary's evaluations."""
    config = load(directory / "run.toml", directory=directory, overrides=[])
    with run_log(config) as log:
        steps = {event.step: event for event, _ in log.events("steps") if isinstance(event, StepCompleted)}
    metrics = [steps[number].metrics for number in sorted(steps)]

    def column(name: str) -> list[float]:
        return [step[name] for step in metrics if name in step]

    summary = json.loads((directory / "summary.json").read_text())
    return Course(
        regime,
        mode,
        column("replay/k3_on"),
        column("replay/k3_off"),
        column("replay/flip_share"),
        column("grad_norm"),
        column("reward"),
        [(0, summary["pass_rate_first"]), (len(metrics), summary["pass_rate_last"])],
        seed,
    )
