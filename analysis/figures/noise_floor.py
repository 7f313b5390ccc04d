"""Accuracy lost to a compressor by the error that it adds to the noise, beside dense updates with more noise."""

from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures import ResultsFigure
from analysis.tables.noise_floor import floors_of
from dpcomp.lab.figures.style import COLORS, COLUMN_INCHES, LOOKS, MARKERS, use_style

DENSE = LOOKS["dense, float32"]


def draw(table: pd.DataFrame) -> Figure:
    """Draw what is lost against η, the error beside the noise.

    Args:
        table: What `floors_of` returns.

    Returns:
        The figure, a panel a setting. Bars are 95 % intervals, paired by seed.
    """
    use_style()
    drawn: Any = table.assign(method=table["method"].map(_named))
    settings = list(dict.fromkeys(drawn["setting"]))
    size = (1.2 * COLUMN_INCHES, 0.95 * COLUMN_INCHES)
    figure, panels = plt.subplots(1, len(settings), figsize=size, sharey=True, squeeze=False)
    methods = drawn[~drawn["dense"]].sort_values("error")["method"].unique()
    looks = dict(zip(methods, [look for look in range(len(COLORS)) if look != DENSE], strict=False))
    for axes, setting in zip(panels[0], settings, strict=True):
        rows = drawn[drawn["setting"] == setting]
        _bars(axes, rows[rows["dense"]], look=DENSE, line="-", label="dense, more noise")
        for method, look in looks.items():
            _bars(
                axes,
                rows[rows["method"] == method],
                look=look,
                line="none",
                label=str(method),
            )
        axes.axhline(0, color="0.3", linewidth=0.8)
        axes.set_title(f"clients {setting}" if setting == "alike" else str(setting), fontsize="small")
        axes.set(xlabel="error ÷ noise, η")
    panels[0, 0].set_ylabel("points beside dense float32")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="x-small", columnspacing=1)
    return figure


def _named(method: str) -> str:
    """Return the name of a method in figures, with its bits; a panel's methods have one momentum."""
    name = method.replace("shared", "common").removesuffix(", momentum")
    return name if "bit" in name or "float32" in name else f"{name}, 1 bit"


def _bars(axes: Axes, rows: Any, *, look: int, line: str, label: str) -> None:
    if not len(rows):
        return
    half = rows["half"].fillna(0)
    color, marker = COLORS[look], MARKERS[look]
    axes.errorbar(
        rows["error"], rows["difference"], yerr=half, color=color, marker=marker, linestyle=line, capsize=2, label=label
    )


FIGURE = ResultsFigure(source="erased", read=floors_of, draw=draw)
