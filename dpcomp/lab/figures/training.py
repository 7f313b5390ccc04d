"""Accuracy against rounds and against bytes: what compression saves, and what it costs."""

import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from dpcomp.lab.figures.style import COLUMN_INCHES, lines_by_method, place_legend, use_style


def draw(curves: pd.DataFrame) -> Figure:
    """Draw test accuracy against rounds (left), and against uplink bytes (right).

    Args:
        curves: One row for each round of each trial, with the columns `method`, `seed`, `round`, `test_accuracy` (a
            share) and `uplink_bytes`, as `dpcomp.lab.results.frames.curves` returns them.

    Returns:
        The figure of two panels; bands span the seeds.
    """
    use_style()
    frame = curves.sort_values(["method", "seed", "round"]).copy()
    frame["uplink_kib"] = frame.groupby(["method", "seed"])["uplink_bytes"].cumsum() / 1024
    frame["accuracy_percent"] = 100 * frame["test_accuracy"]
    frame = frame.dropna(subset="test_accuracy")
    methods = list(dict.fromkeys(curves["method"]))
    figure, (left, right) = plt.subplots(1, 2, figsize=(2.2 * COLUMN_INCHES, COLUMN_INCHES * 0.85), sharey=True)
    style = lines_by_method(methods, marked=False)
    sns.lineplot(frame, x="round", y="accuracy_percent", errorbar=("pi", 100), ax=left, **style)
    means = pd.DataFrame(frame.groupby(["method", "round"])[["uplink_kib", "accuracy_percent"]].mean()).reset_index()
    sns.lineplot(means, x="uplink_kib", y="accuracy_percent", legend=False, ax=right, **style)
    left.set(xlabel="round", ylabel="test accuracy (%)")
    place_legend(figure, left, loc="lower right")
    right.set(xscale="log", xlabel="uplink, all clients (KiB, log scale)")
    return figure
