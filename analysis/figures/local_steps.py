"""How many local steps a round pay, at one ε: claim 4."""

from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from analysis.figures import ResultsFigure
from analysis.tables.trials import trials_below
from dpcomp.lab.figures.style import COLUMN_INCHES, legend_below, plot_means, use_style

STEPS = (1, 2, 3, 5, 10, 20)


def draw(trials: pd.DataFrame) -> Figure:
    """Draw test accuracy against the number of local steps in a round, and against the uplink traffic.

    Left: the number of rounds is the same for all; middle and right: the number of all local steps is.

    Args:
        trials: One row for each trial, with the columns `config` ("equal_steps" or "equal_rounds"), `data`,
            `grid.epsilon`, `local_steps`, `seed`, `test_accuracy` (a share) and `uplink_bytes` (of the whole run).

    Returns:
        The figure of three panels; bands span the seeds.
    """
    use_style()
    frame: Any = trials.copy()
    frame["accuracy_percent"] = 100 * frame["test_accuracy"]
    frame["steps"] = frame["local_steps"].astype(int)
    frame["uplink_kib"] = frame["uplink_bytes"] / 1024
    frame["method"] = "ε ≤ " + frame["grid.epsilon"] + ", " + frame["data"]
    methods = sorted(frame["method"].unique(), key=lambda name: (name.split(",")[1] != " IID", name))
    longer, oftener = (frame[frame["config"] == name] for name in ("equal_rounds", "equal_steps"))
    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(2.2 * COLUMN_INCHES, 0.95 * COLUMN_INCHES), sharey=True, width_ratios=(1, 1, 1.15)
    )
    plot_means(left, longer, "steps", "accuracy_percent", methods)
    plot_means(middle, oftener, "steps", "accuracy_percent", methods)
    means: Any = oftener.groupby(["method", "steps"])[["uplink_kib", "accuracy_percent"]].mean().reset_index()
    plot_means(right, means, "uplink_kib", "accuracy_percent", methods)
    left.set(title="equal rounds", ylabel="test accuracy (%)")
    middle.set(title="equal steps in all")
    right.set(title="equal steps in all", xscale="log", xlabel="uplink of a run (KiB, log scale)")
    right.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    right.xaxis.set_major_formatter(ScalarFormatter())
    right.xaxis.set_minor_formatter(NullFormatter())
    for axes in (left, middle):
        _label_steps(axes)
    legend_below(figure, left, columns=2)
    return figure


def _label_steps(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.set_xticks(STEPS, [str(number) for number in STEPS])
    axes.minorticks_off()
    axes.set_xlabel("local steps a round")


FIGURE = ResultsFigure(source="local_steps", read=trials_below, draw=draw)
