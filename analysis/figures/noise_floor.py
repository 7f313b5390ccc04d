"""Accuracy lost to a compressor by the error that it adds to the noise, beside dense updates with more noise."""

from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from analysis.figures import ResultsFigure
from analysis.tables.noise_floor import floor_of
from dpcomp.lab.figures.style import COLORS, COLUMN_INCHES, MARKERS, use_style


def draw(table: pd.DataFrame) -> Figure:
    """Draw what is lost against η, the error beside the noise.

    Args:
        table: What `floor_of` returns.

    Returns:
        The figure. Bars are 95 % intervals, paired by seed.
    """
    use_style()
    figure, axes = plt.subplots(figsize=(1.15 * COLUMN_INCHES, 0.85 * COLUMN_INCHES))
    drawn: Any = table
    dense, points = drawn[drawn["dense"]], drawn[~drawn["dense"]]
    for rows, look, line, label in (
        (dense, 7, "-", "dense, more noise"),
        (points, 0, "none", "own supports, rotated bits"),
    ):
        axes.errorbar(
            rows["error"],
            rows["difference"],
            yerr=rows["half"].fillna(0),
            color=COLORS[look],
            marker=MARKERS[look],
            linestyle=line,
            capsize=2,
            label=label,
        )
    for _, row in points.iterrows():
        left = row["error"] > drawn["error"].max() / 4  # of the point is room for its name
        axes.annotate(
            str(row["method"]),
            (row["error"], row["difference"]),
            xytext=(-4 if left else 4, 4 if left else -9),
            textcoords="offset points",
            horizontalalignment="right" if left else "left",
            fontsize="x-small",
        )
    axes.axhline(0, color="0.3", linewidth=0.8)
    axes.set(xlabel="error of compression ÷ noise, η", ylabel="points beside dense float32")
    axes.legend(loc="lower left", fontsize="small")
    return figure


FIGURE = ResultsFigure(source="erased", read=floor_of, draw=draw)
