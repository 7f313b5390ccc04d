"""A test metric against rounds and against bytes: what compression saves, and what it costs."""

import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from dpcomp.lab.figures.style import COLUMN_INCHES, lines_by_method, place_legend, use_style
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
    frame = curves.sort_values(["method", "seed", "round"]).copy()
    frame["uplink_kib"] = frame.groupby(["method", "seed"])["uplink_bytes"].cumsum() / 1024
    frame["value"] = (100 if metric == ACCURACY else 1) * frame[f"test_{metric}"]
    frame = frame.dropna(subset="value")
    methods = list(dict.fromkeys(curves["method"]))
    figure, (left, right) = plt.subplots(1, 2, figsize=(2.2 * COLUMN_INCHES, COLUMN_INCHES * 0.85), sharey=True)
    style = lines_by_method(methods, marked=False)
    sns.lineplot(frame, x="round", y="value", errorbar=("pi", 100), ax=left, **style)
    means = pd.DataFrame(frame.groupby(["method", "round"])[["uplink_kib", "value"]].mean()).reset_index()
    sns.lineplot(means, x="uplink_kib", y="value", legend=False, ax=right, **style)
    left.set(xlabel="round", ylabel="test accuracy (%)" if metric == ACCURACY else f"test {metric}")
    place_legend(figure, left, loc="lower right")
    right.set(xscale="log", xlabel="uplink, all clients (KiB, log scale)")
    return figure
