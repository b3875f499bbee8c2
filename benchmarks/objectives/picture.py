"""The picture: one line an objective, the band between its best and worst seed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

INK = "#22313f"
COLOURS = ("#2f6fb0", "#6ba3d6", "#e07b39", "#3c9d6e")


@dataclass
class Curve:
    """What one training measured, evaluation by evaluation."""

    label: str
    seed: int
    points: list[dict[str, Any]]


def draw(curves: list[Curve], updates: int, path: Path) -> None:
    """Pass rate, and the share of clipped tokens, over the steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), dpi=110, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    labels = list(dict.fromkeys(curve.label for curve in curves))
    for colour, label in zip(COLOURS, labels, strict=False):
        own = [curve.points for curve in curves if curve.label == label]
        for axis, name in ((left, "pass_rate"), (right, "clip_fraction")):
            points = [[(point["step"], point[name]) for point in points if name in point] for points in own]
            if not all(points):
                continue
            steps = [step for step, _ in points[0]]
            columns = [[line[at][1] for line in points] for at in range(len(steps))]
            axis.plot(steps, [sum(column) / len(column) for column in columns], color=colour, label=label)
            axis.fill_between(steps, list(map(min, columns)), list(map(max, columns)), color=colour, alpha=0.15, lw=0)
    left.set_title(f"held-back pass rate, mean and range of {len(curves) // len(labels)} seeds", loc="left", color=INK)
    right.set_title("share of clipped tokens", loc="left", color=INK)
    for axis in (left, right):
        axis.set_xlabel(f"batch of the recorded stream ({updates} updates each)")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="#e6eaee")
    left.legend(frameon=False)
    figure.savefig(path)
