"""What noise takes from compression at equal density, by the order of noise and sparsification: claim 3."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures import ResultsFigure
from analysis.tables.studies import losses_of
from dpcomp.lab.figures.style import COLUMN_INCHES, legend_below, plot_means, use_style

METHODS = (
    "noise, then top-k",
    "noise, then top-k, feedback",
    "random support, then noise",
    "top-k of the clean update, noise at the server",
)
CLAIMED_PERCENT = 30
NOISE = {0: "0", 0.0625: "1/16", 0.25: "¼", 0.5: "½", 1: "1", 2: "2", 4: "4", 8: "8"}
GAP = 0.4  # between no noise, which no axis by powers of two has a place for, and the least noise
TASKS = {"fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10"}


def draw(losses: pd.DataFrame) -> Figure:
    """Draw the loss of compression ratio in percent against the noise multiplier, at equal density.

    Each task and batch size is a row of panels, and each density a panel of that row. Only values of the fewest bits
    are drawn.

    Args:
        losses: The table that `analysis.tables.noise_losses.at_equal_density` returns.

    Returns:
        The figure. Points are means over phases and seeds, bars span the seeds' means over phases; the horizontal line
        is the 30 % of the claim.
    """
    use_style()
    frame: Any = losses[losses["bits"] == losses["bits"].min()].copy()
    frame["method"] = [_method(row) for row in frame.to_dict("records")]
    frame = frame.dropna(subset="method")
    keys = ["task", "batch", "density", "method", "noise_multiplier", "seed"]
    frame = frame.groupby(keys)["loss"].mean().reset_index()
    cases: Any = list(frame.groupby(["task", "batch"], sort=True).groups)[::-1]
    densities = sorted(frame["density"].unique())
    size = (2.2 * COLUMN_INCHES, 0.3 + 0.6 * COLUMN_INCHES * len(cases))
    figure, grid = plt.subplots(len(cases), len(densities), figsize=size, sharex=True, sharey=True, squeeze=False)
    for number, (task, batch) in enumerate(cases):
        for axes, density in zip(grid[number], densities, strict=True):
            part: Any = frame[(frame["task"] == task) & (frame["batch"] == batch) & (frame["density"] == density)]
            axes.axhline(CLAIMED_PERCENT, color="0.2", linewidth=1.2, zorder=1.5)
            plot_by_noise(axes, part, "loss", METHODS, markersize=5)
            axes.set_title(f"top {100 * density:g} %" if number == 0 else "")
            axes.set_ylabel(f"{TASKS.get(task, task)}\nbatch {batch}\nloss of ratio (%)", fontsize="small")
    legend_below(figure, grid[0, 0], columns=2)
    return figure


def plot_by_noise(axes: Axes, frame: Any, y: str, methods: Sequence[str], **looks: Any) -> None:
    """Draw means against the noise multiplier, evenly spaced, with bars that span the rows; no line leads from z = 0.

    Args:
        axes: Where to draw.
        frame: A table with the columns `method`, `noise_multiplier` and `y`.
        y: The column of the vertical axis.
        methods: The methods, in the order of the legend.
        **looks: Further arguments of `seaborn.lineplot`.
    """
    placed = frame.assign(place=frame["noise_multiplier"].map(places(frame)))
    still = placed["place"] == 0
    plot_means(axes, placed[~still], "place", y, methods, bars=True, **looks)
    plot_means(axes, placed[still], "place", y, methods, bars=True, **looks | {"legend": False})
    axes.set_xticks(list(places(frame).values()), [NOISE[noise] for noise in places(frame)])
    axes.set_xlabel("noise multiplier z")


def places(frame: Any) -> dict[float, float]:
    """Return the noise multipliers of a table, from the least, with their places on the axis."""
    noises = sorted(set(frame["noise_multiplier"]))
    return {noise: number + GAP * (noise > 0) for number, noise in enumerate(noises)}


def _method(row: dict) -> str | None:
    """Return the line of the figure that a row of the uplink belongs to; None for rows that are not drawn."""
    if row["link"] != "uplink":
        return None
    if row["trust"] == "server":
        return METHODS[3] if row["order"] == "noise first" and not row["feedback"] else None
    if row["order"] == "support first":
        return METHODS[2] if not row["feedback"] else None
    return METHODS[1] if row["feedback"] else METHODS[0]


FIGURE = ResultsFigure(source="scrambling", read=losses_of, draw=draw)
