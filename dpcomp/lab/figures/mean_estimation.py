"""What bits buy in distributed mean estimation: the error beside that of the Gaussian mechanism in float32."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from dpcomp.lab.figures.style import COLORS, COLUMN_INCHES, MARKERS, legend_below, use_style

LOOKS = {  # of each family: colour and marker
    "EDEN": (0, 0),
    "own mask, float32": (1, 2),
    "own mask, noisy sign": (2, 5),
    "top k of the noisy": (4, 4),
    "SQKR": (5, 6),
    "CSGM": (3, 3),
    "PPR (bound, not run)": (7, 1),
}
HOLLOW = ("PPR (bound, not run)",)


def draw(frame: pd.DataFrame, epsilons: Sequence[float] = (1.0, 8.0)) -> Figure:
    """Draw the ratio of errors against the bits a coordinate: a panel an ε, a line a family of methods.

    Args:
        frame: Of `dpcomp.lab.mean_estimation.table.frame_of`, of one task and one kind of vectors.
        epsilons: Those that have a panel, one below the other.

    Returns:
        The figure. Families that LOOKS does not name are left out: they lie on others, or are the reference, at 1.
    """
    use_style()
    size = (COLUMN_INCHES, 1.15 * COLUMN_INCHES)
    figure, panels = plt.subplots(len(epsilons), 1, figsize=size, sharex=True, sharey=True, squeeze=False)
    for axes, epsilon in zip(panels[:, 0], epsilons, strict=True):
        part: Any = frame[frame["epsilon"] == epsilon]
        axes.axhline(1, color="0.3", linewidth=1, zorder=1)
        for family, (color, marker) in LOOKS.items():
            rows = part[part["family"] == family].sort_values("bits")
            look = {"color": COLORS[color], "marker": MARKERS[marker], "markersize": 4.5, "linewidth": 1.2}
            if family in HOLLOW:
                look |= {"markerfacecolor": "white", "linestyle": "none", "markersize": 6}
            axes.plot(rows["bits"], rows["ratio"], label=family, **look)
        axes.set(xscale="log", yscale="log", ylabel="error ÷ float32's")
        axes.set_title(f"ε = {epsilon:g}", loc="left")
        axes.set_yticks([0.3, 1, 3, 10], ["0.3", "1", "3", "10"])
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda bits, _: f"{bits:g}"))
    panels[-1, 0].set_xlabel("bits a coordinate")
    legend_below(figure, panels[0, 0], columns=2)
    return figure
