"""Which rounding and which step make few packed bits fail: claim 2."""

from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from analysis.figures import ResultsFigure
from analysis.measures.intervals import mean_interval
from analysis.tables.trials import trials_of
from dpcomp.lab.figures.style import COLORS, COLUMN_INCHES, MARKERS, legend_below, use_style

ROUNDINGS = ("nearest", "stochastic", "dithered", "nearest, feedback")
SHARES = ("equal", "water-filled")
LABELS = {"equal": "step spans the largest value", "water-filled": "step of the least squared error"}
APART = 0.24  # rows, between the shares


def draw(trials: pd.DataFrame) -> Figure:
    """Draw test accuracy by the rounding of packed levels, for the steps of equal and of water-filled shares.

    A panel for each noise; a row for each rounding.

    Args:
        trials: One row for each trial, with the columns `noise`, `allocation` (such as "equal, 2 bits"), `rounding`,
            `seed` and `test_accuracy` (a share).

    Returns:
        The figure of two panels. Marks are means over the seeds; bars are 95 % intervals.
    """
    use_style()
    frame: Any = trials.assign(percent=100 * trials["test_accuracy"])
    frame["shares"] = frame["allocation"].str.split(",").str[0]
    noises = list(dict.fromkeys(frame["noise"]))
    size = (1.3 * COLUMN_INCHES, 0.75 * COLUMN_INCHES)
    figure, panels = plt.subplots(1, len(noises), figsize=size, sharex=True, sharey=True)
    for axes, noise in zip(panels, noises, strict=True):
        for number, shares in enumerate(SHARES):
            part = frame[(frame["noise"] == noise) & (frame["shares"] == shares)]
            found = [mean_interval(part.loc[part["rounding"] == each, "percent"].tolist()) for each in ROUNDINGS]
            places = [place + APART * (number - 0.5) for place in range(len(ROUNDINGS))]
            means, halves = zip(*found, strict=True)
            look = {"fmt": MARKERS[number], "color": COLORS[number], "markersize": 5, "elinewidth": 1.2}
            axes.errorbar(means, places, xerr=halves, label=LABELS[shares], **look)
        axes.set(title=noise, xlabel="test accuracy (%)")
        axes.set_yticks(range(len(ROUNDINGS)), ROUNDINGS, fontsize="small")
        axes.grid(visible=False, axis="y")
    panels[0].set_ylim(len(ROUNDINGS) - 0.5, -0.5)
    panels[0].set_ylabel("2 packed bits, rounding", fontsize="small")
    legend_below(figure, panels[0], columns=1)
    return figure


FIGURE = ResultsFigure(source="allocation/rounding.toml", read=trials_of, draw=draw)
