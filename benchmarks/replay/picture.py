"""The picture: for each regime, k3 of the same weights with both routings, and what training without replay did."""

from pathlib import Path

from benchmarks.replay.read import Course

INK, BLUE, ORANGE, GREY = "#22313f", "#2f6fb0", "#e07b39", "#9aa5b1"
SMOOTHED_OVER = 5


def draw(courses: list[Course], regimes: list[str], path: Path) -> None:
    """A column a regime: k3 (logarithmic) above, mean reward of the batch below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [name for name in regimes if any(course.regime == name for course in courses)]
    figure = Figure(figsize=(4.2 * len(shown), 7), dpi=110, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(shown), squeeze=False, sharex=True)
    for column, name in enumerate(shown):
        above, below = axes[0][column], axes[1][column]
        above.set_title(name, loc="left", color=INK, fontsize=9.5)
        for course in (course for course in courses if course.regime == name):
            trained_with = course.mode == "rollout"
            colour = BLUE if trained_with else ORANGE
            label = "trained with replay" if trained_with else "trained without"
            above.plot(_smooth(course.k3_off), color=colour, lw=1.0, ls=":", label=f"{label}: native routes")
            above.plot(_smooth(course.k3_on), color=colour, lw=1.6, label=f"{label}: recorded routes")
            below.plot(_smooth(course.reward), color=colour, label=label)
        above.set_yscale("log")
        below.set_ylim(0, 1)
        below.set_xlabel("step")
        for axis in (above, below):
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(color="#e6eaee")
    axes[0][0].set_ylabel("k3, engine against trainer [nats a token]")
    axes[1][0].set_ylabel("mean reward of the batch")
    axes[0][0].legend(frameon=False, fontsize=7.5)
    axes[1][0].legend(frameon=False, fontsize=8)
    figure.savefig(path)


def _smooth(values: list[float]) -> list[float]:
    """Median of the last few: k3 is a mean with a heavy tail."""
    return [
        sorted(values[max(0, at - SMOOTHED_OVER + 1) : at + 1])[(min(at + 1, SMOOTHED_OVER) - 1) // 2]
        for at in range(len(values))
    ]
