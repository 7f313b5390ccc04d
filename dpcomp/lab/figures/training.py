"""A test metric against rounds and against bytes: what compression saves, and what it costs."""

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from dpcomp.lab.figures.plots import plot_curves
from dpcomp.lab.figures.style import COLUMN_INCHES, place_legend, use_style
from dpcomp.lab.results.measure import ACCURACY


def draw(curves: pd.DataFrame, metric: str = ACCURACY) -> Figure:
    """Draw a test metric against rounds (left), and against uplink bytes (right); accuracies in percent.

    Args:
        curves: One row for each round of each trial, with the columns `method`, `seed`, `round`, `test_<metric>` (an
            accuracy as a share) and `uplink_bytes`, as `dpcomp.lab.results.frames.curves` returns them.
        metric: The metric, such as "accuracy" or "loss".

    Returns:
        The figure of two panels; bands span the seeds.
    """
    use_style()
    frame = curves.sort_values(["method", "seed", "round"], kind="stable")
    frame = curves.assign(uplink_total=frame.groupby(["method", "seed"])["uplink_bytes"].cumsum())
    figure, (left, right) = plt.subplots(1, 2, figsize=(2.2 * COLUMN_INCHES, COLUMN_INCHES * 0.85), sharey=True)
    plot_curves(frame, y=f"test_{metric}", axes=left)
    plot_curves(frame, x="uplink_total", y=f"test_{metric}", axes=right).set_ylabel("")
    place_legend(figure, left, loc="lower right")
    return figure
