"""Accuracy lost to a compressor by the error that it adds to the noise, beside dense updates with more noise."""

from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures import ResultsFigure
from analysis.tables.noise_floor import floor_of
from dpcomp.lab.figures.style import COLORS, COLUMN_INCHES, MARKERS, legend_below, use_style


def draw(table: pd.DataFrame) -> Figure:
    """Draw what is lost against η, the error beside the noise.

    Args:
        table: What `floor_of` returns.

    Returns:
        The figure. Bars are 95 % intervals, paired by seed.
    """
    use_style()
    figure, axes = plt.subplots(figsize=(1.15 * COLUMN_INCHES, 1.05 * COLUMN_INCHES))
    drawn: Any = table
    dense, points = drawn[drawn["dense"]], drawn[~drawn["dense"]].sort_values("error")
    _bars(axes, dense, look=7, line="-", label="dense, more noise")
    for look, (_, row) in enumerate(points.iterrows()):
        _bars(axes, points[points["method"] == row["method"]], look=look, line="none", label=str(row["method"]))
    axes.axhline(0, color="0.3", linewidth=0.8)
    axes.set(xlabel="error of compression ÷ noise, η", ylabel="points beside dense float32")
    legend_below(figure, axes, columns=2)
    return figure


def _bars(axes: Axes, rows: Any, *, look: int, line: str, label: str) -> None:
    half = rows["half"].fillna(0)
    color, marker = COLORS[look], MARKERS[look]
    axes.errorbar(
        rows["error"], rows["difference"], yerr=half, color=color, marker=marker, linestyle=line, capsize=2, label=label
    )


FIGURE = ResultsFigure(source="erased", read=floor_of, draw=draw)
