"""Draw docs/architecture.png: how one rollout goes through the services, and which package may import which.

python scripts/draw_architecture.py [--out docs/architecture.png]
"""

import argparse
from itertools import pairwise
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

ROOT = Path(__file__).parents[1]

GREY, LINE = "#f2f2ef", "#444444"
PRODUCERS, CONSUMERS, LEARNER = "#dcebf7", "#e3f1df", "#fbe8d3"

# name → (left, bottom, width, height, first line, second line, colour); the plot is 120 by 92.
SERVICES = {
    "dispatcher": (2, 73, 19, 9, "dispatcher", "producers/dispatcher", PRODUCERS),
    "producer": (33, 73, 19, 9, "producer (vLLM)", "producers/rollouts", PRODUCERS),
    "rewards": (66, 73, 19, 9, "rewards", "consumers/rewards", CONSUMERS),
    "groups": (99, 73, 19, 9, "groups", "consumers/groups", CONSUMERS),
    "batches": (99, 54, 19, 9, "batches", "consumers/batches", CONSUMERS),
    "learner": (66, 54, 19, 9, "learner (FSDP2)", "learner", LEARNER),
}

# What each floor holds, from the top: a floor imports only from those below it.
FLOORS = (
    (33, [("deploy", "cli   config   local", GREY)]),
    (25, [("analysis", "audit   history   views", GREY)]),
    (
        14,
        [
            ("producers", "dispatcher\nrollouts: engine, weights", PRODUCERS),
            ("consumers", "rewards   groups\nbatches", CONSUMERS),
            ("learner", "batch   model   losses   router_replay\ntraining   weights   checkpoint   ranks", LEARNER),
        ],
    ),
    (6, [("streams", "stages   runtime   log   broker   blobs   weights   telemetry   processes", GREY)]),
    (-2, [("schemas", "events   parts   topics   services   codec   identity", GREY)]),
)


def box(axes: Axes, left: float, bottom: float, width: float, height: float, colour: str) -> None:
    """A rounded box."""
    style = "round,pad=0,rounding_size=1.0"
    axes.add_patch(
        FancyBboxPatch((left, bottom), width, height, boxstyle=style, facecolor=colour, edgecolor=LINE, linewidth=1.1)
    )


def arrow(
    axes: Axes, points: list[tuple[float, float]], label: str, at: tuple[float, float], dashed: bool = False
) -> None:
    """A line through `points` with its head at the last, and the topic's name at `at`."""
    style = "--" if dashed else "-"
    for start, end in pairwise(points[:-1]):
        axes.plot(*zip(start, end, strict=True), color=LINE, linewidth=1.2, linestyle=style, solid_capstyle="butt")
    axes.annotate(
        "",
        xy=points[-1],
        xytext=points[-2],
        arrowprops=dict(arrowstyle="-|>", color=LINE, linewidth=1.2, linestyle=style, shrinkA=0, shrinkB=0),
    )
    axes.text(*at, label, ha="center", va="center", fontsize=9, family="monospace", backgroundcolor="white")


def flow(axes: Axes) -> None:
    """The services and the topics between them."""
    axes.text(2, 86.5, "How a rollout travels: every arrow is a topic of the log", fontsize=12, weight="bold")
    for left, bottom, width, height, name, room, colour in SERVICES.values():
        box(axes, left, bottom, width, height, colour)
        axes.text(left + width / 2, bottom + 5.8, name, ha="center", va="center", fontsize=10, weight="bold")
        axes.text(left + width / 2, bottom + 2.7, room, ha="center", va="center", fontsize=7, family="monospace")
    arrow(axes, [(21, 78), (33, 78)], "prompts", (27, 79.8))
    arrow(axes, [(52, 78), (66, 78)], "rollouts", (59, 79.8))
    arrow(axes, [(85, 78), (99, 78)], "scores", (92, 79.8))
    arrow(axes, [(108.5, 73), (108.5, 63)], "groups", (108.5, 68))
    arrow(axes, [(99, 60), (85, 60)], "batches", (92, 61.8))
    arrow(axes, [(85, 56.5), (99, 56.5)], "steps", (92, 55))
    arrow(axes, [(66, 60), (46, 60), (46, 73)], "weights", (56, 61.8))
    axes.text(56, 58.1, "files in the blob store", ha="center", va="center", fontsize=7.5)
    # Outcomes are read from the topics that the services write anyway: groups and batches, and the learner's steps.
    axes.plot([75.5, 75.5], [54, 50], color=LINE, linewidth=1.2, linestyle="--")
    arrow(axes, [(108.5, 54), (108.5, 50), (8, 50), (8, 73)], "groups  batches  steps", (32, 51.8), dashed=True)
    axes.text(32, 48.2, "outcomes: the dispatcher reads them to request more", ha="center", va="center", fontsize=7.5)
    arrow(axes, [(38, 73), (38, 67), (16, 67), (16, 73)], "applied", (27, 68.8), dashed=True)
    axes.text(
        86, 47.4, "dead-letters: what a service cannot take, with its original bytes",
        ha="center", va="center", fontsize=8, style="italic",
    )  # fmt: skip


def floors(axes: Axes) -> None:
    """The packages, and in each its rooms."""
    axes.text(2, 42.2, "The house: a floor imports only from the floors below", fontsize=12, weight="bold")
    for bottom, rooms in FLOORS:
        width = (116 - 2 * (len(rooms) - 1)) / len(rooms)
        height = 10 if len(rooms) > 1 else 7
        for place, (name, inside, colour) in enumerate(rooms):
            left = 2 + place * (width + 2)
            box(axes, left, bottom, width, height, colour)
            if len(rooms) > 1:
                axes.text(left + 1.5, bottom + 7.7, name, ha="left", va="center", fontsize=10.5, weight="bold")
                axes.text(left + 1.5, bottom + 3.4, inside, ha="left", va="center", fontsize=8, family="monospace")
            else:
                axes.text(left + 1.5, bottom + 3.5, name, ha="left", va="center", fontsize=10.5, weight="bold")
                axes.text(left + 17, bottom + 3.5, inside, ha="left", va="center", fontsize=8, family="monospace")


def main() -> None:
    """Draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "architecture.png", metavar="FILE")
    figure, axes = plt.subplots(figsize=(12, 9.4))
    axes.set_xlim(0, 120)
    axes.set_ylim(-3, 89)
    axes.axis("off")
    flow(axes)
    floors(axes)
    figure.savefig(parser.parse_args().out, dpi=110, bbox_inches="tight", pad_inches=0.1)


if __name__ == "__main__":
    main()
