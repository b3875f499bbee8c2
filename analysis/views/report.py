"""The report of a run: one picture of eight panels, computed from the log alone."""

import io
from pathlib import Path
from typing import Any, Final

from analysis.history import timeline
from analysis.history.history import History
from analysis.history.timeline import Series
from analysis.views.summary import Summary

INK: Final = "#22313f"
BLUE: Final = "#2f6fb0"
ORANGE: Final = "#e07b39"
GREEN: Final = "#3c9d6e"
GREY: Final = "#9aa5b1"
STACK: Final = ("#2f6fb0", "#6ba3d6", "#b9d3ea", "#f0b27a", "#e07b39")

_STYLE: Final = {
    "font.size": 9,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6eaee",
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


def write_report(history: History, summary: Summary, path: Path) -> None:
    """Draws the run as a PNG and moves it to `path`, so that there is never half a file."""
    import matplotlib as mpl

    with mpl.rc_context(_STYLE):
        # Without pyplot: no display, no global state, usable from any thread.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(16, 8.4), dpi=110, layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        axes = figure.subplots(2, 4)
        panels = (_pass_rate, _reward, _entropy, _replay, _staleness, _zero_variance, _waiting, _throughput)
        for axis, panel in zip(axes.flat, panels, strict=True):
            panel(axis, history)
        figure.suptitle(_title(summary), x=0.012, ha="left", fontsize=14, fontweight="bold", color=INK)
        figure.text(0.012, -0.005, _footer(summary), ha="left", va="top", fontsize=9, color="#5b6875")
        picture = io.BytesIO()
        figure.savefig(picture, format="png", bbox_inches="tight", pad_inches=0.2)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(picture.getvalue())
    partial.replace(path)


def _title(summary: Summary) -> str:
    first, last = summary.pass_rate_first, summary.pass_rate_last
    learned = "" if first is None or last is None else f": held-back pass rate {first:.2f} → {last:.2f}"
    return f"{summary.run}{learned} in {summary.steps} steps, {summary.wall_s:.0f} s"


def _footer(summary: Summary) -> str:
    audit = summary.audit
    return (
        f"{audit.produced:,} rollouts; {summary.tokens_generated:,} tokens generated, {summary.tokens_trained:,} "
        "trained on; "
        f"{summary.groups_ready} groups ready, {summary.groups_dropped} dropped; {audit.unaccounted} rollouts "
        f"unaccounted for, {audit.trained_twice} trained twice; broker {summary.broker}; seed {summary.seed}"
    )


def _pass_rate(axis: Any, history: History) -> None:
    axis.set_title("Pass rate (temperature 1)")
    training, held_back = timeline.training_pass_rate(history), timeline.held_back(history)
    axis.plot(training.x, training.y, color=GREY, label="training prompts, all rollouts")
    axis.plot(held_back.x, held_back.y, "o-", color=BLUE, markersize=6, linewidth=2.4, label="held-back prompts")
    for x, y in zip(held_back.x, held_back.y, strict=True):
        axis.annotate(f"{y:.2f}", (x, y), textcoords="offset points", xytext=(0, 8), ha="center", color=BLUE)
    axis.set_ylim(0, 1.08)
    _finish(axis, "step")


def _reward(axis: Any, history: History) -> None:
    axis.set_title("Reward of trained rollouts")
    _line(axis, timeline.metric(history, "reward"), GREEN, "mean reward of the batch")
    _finish(axis, "step")


def _entropy(axis: Any, history: History) -> None:
    axis.set_title("Entropy by token group (nats)")
    _line(axis, timeline.metric(history, "entropy/high"), ORANGE, "top 20 % of each response")
    _line(axis, timeline.metric(history, "entropy"), GREY, "all tokens")
    _line(axis, timeline.metric(history, "entropy/low"), BLUE, "the rest")
    axis.set_ylim(bottom=0)
    _finish(axis, "step")


def _replay(axis: Any, history: History) -> None:
    axis.set_title("Engine against trainer: k3 (log scale)")
    _line(axis, timeline.metric(history, "replay/k3_off"), ORANGE, "trainer's own routing")
    _line(axis, timeline.metric(history, "replay/k3_on"), BLUE, "routes replayed")
    if axis.lines:
        axis.set_yscale("log")
    _finish(axis, "step")


def _staleness(axis: Any, history: History) -> None:
    axis.set_title("Staleness of trained rollouts (versions)")
    worst, mean = timeline.metric(history, "staleness_max"), timeline.metric(history, "staleness")
    if len(worst.x):
        axis.step(worst.x, worst.y, where="mid", color=ORANGE, label="oldest")
    _line(axis, mean, BLUE, "mean")
    axis.set_ylim(bottom=0)
    axis.yaxis.get_major_locator().set_params(integer=True)
    _finish(axis, "step")


def _zero_variance(axis: Any, history: History) -> None:
    axis.set_title("Groups without variance")
    share = timeline.dropped_share(history, "zero_variance")
    if len(share.x):
        axis.bar(share.x, share.y, width=0.85, color="#b9d3ea", label="share of closed groups, dropped")
    axis.set_ylim(0, 1)
    _finish(axis, "step")


def _waiting(axis: Any, history: History) -> None:
    axis.set_title("Rollouts by what they wait for")
    times, places = timeline.waiting(history)
    if places:
        axis.stackplot(times, list(places.values()), labels=list(places), colors=STACK, linewidth=0)
        axis.margins(x=0)
    _finish(axis, "seconds", columns=2)


def _throughput(axis: Any, history: History) -> None:
    axis.set_title("Generated tokens per second")
    series = timeline.generated_per_s(history)
    if len(series.x):
        axis.fill_between(series.x, series.y, color="#b9d3ea", linewidth=0)
        axis.plot(series.x, series.y, color=BLUE, label="5 s means")
        axis.margins(x=0)
    axis.set_ylim(bottom=0)
    _finish(axis, "seconds")


def _line(axis: Any, series: Series, color: str, label: str) -> None:
    if len(series.x):
        axis.plot(series.x, series.y, color=color, label=label)


def _finish(axis: Any, x: str, columns: int = 1) -> None:
    axis.set_xlabel(x)
    if x == "step":
        axis.xaxis.get_major_locator().set_params(integer=True)
    if axis.get_legend_handles_labels()[0]:
        top = axis.get_ylim()[1]
        if columns > 1:
            axis.set_ylim(top=top * 1.25)
        axis.legend(fontsize=8, ncols=columns, loc="best" if columns == 1 else "upper left")
    else:
        axis.text(0.5, 0.5, "nothing on the log", transform=axis.transAxes, ha="center", color=GREY)
