"""The picture: for each regime, k3 of the same weights with both routings, and the reward that training came to."""

import statistics
from collections.abc import Callable
from pathlib import Path

from benchmarks.replay.read import Course

INK, BLUE, ORANGE, GREY = "#22313f", "#2f6fb0", "#e07b39", "#9aa5b1"
SMOOTHED_OVER = 5
COLUMNS = 3


def draw(courses: list[Course], regimes: list[str], path: Path) -> None:
    """For each regime k3, engine against trainer, (logarithmic) above and mean reward of the batch below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [name for name in regimes if any(course.regime == name for course in courses)]
    columns, bands = min(COLUMNS, len(shown)), -(-len(shown) // COLUMNS)
    figure = Figure(figsize=(4.6 * columns, 5.6 * bands), dpi=100, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2 * bands, columns, squeeze=False)
    for unused in axes[2 * bands - 2 :, len(shown) - columns * (bands - 1) :].flat:
        unused.set_axis_off()
    for place, name in enumerate(shown):
        band, column = divmod(place, columns)
        above, below = axes[2 * band][column], axes[2 * band + 1][column]
        above.set_title(name, loc="left", color=INK, fontsize=9.5)
        for mode, colour, label in (("rollout", BLUE, "trained with replay"), ("off", ORANGE, "trained without")):
            of_mode = [course for course in courses if course.regime == name and course.mode == mode]
            if not of_mode:
                continue
            native = _over_seeds([_smooth(course.k3_off) for course in of_mode], statistics.median)
            recorded = _over_seeds([_smooth(course.k3_on) for course in of_mode], statistics.median)
            above.plot(native, color=colour, lw=1.2, ls=":", label=f"{label}: native routes")
            above.plot(recorded, color=colour, lw=1.6, label=f"{label}: recorded routes")
            for course in of_mode:
                below.plot(_smooth(course.reward), color=colour, lw=0.8, alpha=0.45)
            mean = _over_seeds([_smooth(course.reward) for course in of_mode], statistics.fmean)
            below.plot(mean, color=colour, lw=2.0, label=f"{label}, {len(of_mode)} seed{'s' * (len(of_mode) > 1)}")
        above.set_yscale("log")
        below.set_ylim(0, 1)
        below.set_xlabel("step")
        for axis in (above, below):
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(color="#e6eaee")
        below.legend(frameon=False, fontsize=8, loc="lower right")
        if column == 0:
            above.set_ylabel("k3 [nats a token]")
            below.set_ylabel("mean reward of the batch")
    axes[0][0].legend(frameon=False, fontsize=7.5)
    figure.savefig(path)


def _smooth(values: list[float]) -> list[float]:
    """Median of the last few: k3 is a mean with a heavy tail."""
    return [
        sorted(values[max(0, at - SMOOTHED_OVER + 1) : at + 1])[(min(at + 1, SMOOTHED_OVER) - 1) // 2]
        for at in range(len(values))
    ]


def _over_seeds(series: list[list[float]], middle: Callable[[list[float]], float]) -> list[float]:
    """Step by step, over as many steps as all runs have."""
    return [middle(list(values)) for values in zip(*series, strict=False)]
