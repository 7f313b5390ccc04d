"""Accuracy against bytes at one ε, by the order of noise and sparsification."""

from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from analysis.figures import ResultsFigure
from analysis.tables.trials import trials_below
from dpcomp.lab.figures.style import COLUMN_INCHES, legend_below, plot_means, use_style

METHODS = {
    "dense": "dense, float32",
    "bits_4": "dense, 4 bits",
    "top_k_1": "noise, then top-k, feedback",
    "random_k_10": "random support, then noise",
    "random_k_1": "random support, then noise",
}


def draw(trials: pd.DataFrame) -> Figure:
    """Draw test accuracy against payload bytes, with a panel for each number of local steps.

    Args:
        trials: One row for each trial, with the columns `config` (such as "local_steps_1/top_k_1"), `seed`,
            `test_accuracy` (a share) and `payload_bytes`.

    Returns:
        The figure. Points are means over the seeds, bars span them, and lines join the points of one method.
    """
    use_style()
    frame: Any = trials.copy()
    frame[["steps", "name"]] = frame["config"].str.split("/", expand=True)
    frame["method"] = frame["name"].map(METHODS)
    frame["accuracy_percent"] = 100 * frame["test_accuracy"]
    frame["payload"] = frame.groupby("config")["payload_bytes"].transform("mean")
    cases = sorted(frame["steps"].unique())
    size = (2.2 * COLUMN_INCHES, 0.8 * COLUMN_INCHES)
    figure, grid = plt.subplots(1, len(cases), figsize=size, sharey=True, squeeze=False)
    methods = list(dict.fromkeys(METHODS.values()))
    for axes, steps in zip(grid[0], cases, strict=True):
        part = frame[frame["steps"] == steps]
        plot_means(axes, part, "payload", "accuracy_percent", methods, bars=True, markersize=7)
        number = int(steps.rsplit("_", 1)[1])
        axes.set(
            title=f"{number} local step{'s' if number > 1 else ''} a round",
            xscale="log",
            xlabel="payload (bytes, log scale)",
            ylabel="test accuracy (%)",
        )
    legend_below(figure, grid[0, 0], columns=2)
    return figure


FIGURE = ResultsFigure(source="compression", read=trials_below, draw=draw)
