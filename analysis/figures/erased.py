"""Accuracy against the bytes of an update at one ε, for supports that are drawn before the noise."""

from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from analysis.figures import ResultsFigure
from analysis.tables.trials import trials_of
from dpcomp.lab.figures.style import COLUMN_INCHES, plot_means, use_style

METHODS = {
    "dense": "dense, float32",
    "top 1 %, feedback": "noise, then top-k, feedback",
    "own 1 %": "a support for each client, then noise",
    "own 2 %": "a support for each client, then noise",
    "own 10 %": "a support for each client, then noise",
    "shared 1 %": "random support, then noise",
}


def draw(trials: pd.DataFrame) -> Figure:
    """Draw test accuracy against payload bytes.

    Args:
        trials: One row for each trial, with the columns `method` (a key of METHODS), `seed`, `test_accuracy` (a share)
            and `payload_bytes`.

    Returns:
        The figure. Points are means over the seeds, bars span them, and lines join the points of one method.
    """
    use_style()
    frame: Any = trials.copy()
    label = "grid.method" if "grid.method" in frame else "method"
    frame["accuracy_percent"] = 100 * frame["test_accuracy"]
    frame["payload"] = frame.groupby(label)["payload_bytes"].transform("mean")
    frame["method"] = frame[label].map(METHODS)
    figure, axes = plt.subplots(figsize=(1.25 * COLUMN_INCHES, 0.95 * COLUMN_INCHES))
    plot_means(
        axes, frame, "payload", "accuracy_percent", list(dict.fromkeys(METHODS.values())), bars=True, markersize=7
    )
    axes.set(xscale="log", xlabel="bytes of a client's update (log scale)", ylabel="test accuracy (%)")
    axes.legend(title=None, loc="lower right", fontsize="small")
    return figure


FIGURE = ResultsFigure(source="erased/fashion_mnist.toml", read=trials_of, draw=draw)
