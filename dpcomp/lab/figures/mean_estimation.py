"""What bits buy in distributed mean estimation: the error beside that of the Gaussian mechanism in float32."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from dpcomp.lab.figures.style import COLORS, COLUMN_INCHES, MARKERS, use_style

LOOKS = {  # of the families under each trust: colour and marker
    "nobody": {
        "EDEN": (0, 0),
        "own mask, float32": (1, 2),
        "own mask, noisy sign": (2, 5),
        "top k of the noisy": (4, 4),
        "SQKR": (5, 6),
    },
    "server": {"exact noise": (8, 8), "CSGM": (3, 3), "PPR (bound)": (7, 1)},
}
TITLES = {"nobody": "trust nobody", "server": "trust the server"}
DASHES = {"nobody": "-", "server": (0, (3, 1))}


def draw(frame: pd.DataFrame, epsilons: Sequence[float] = (1.0, 8.0)) -> Figure:
    """Draw the ratio of errors against the bits a coordinate: a panel for each ε, a line a family of methods.

    Args:
        frame: Of `dpcomp.lab.mean_estimation.table.frame_of`, of one task and one kind of vectors.
        epsilons: Those that have a panel, side by side.

    Returns:
        The figure. Families that LOOKS does not name are left out: they lie on others, or are the reference, at 1. What
        was computed and not run is hollow.
    """
    use_style()
    size = (COLUMN_INCHES, 0.95 * COLUMN_INCHES)
    figure, panels = plt.subplots(1, len(epsilons), figsize=size, sharex=True, sharey=True, squeeze=False)
    for axes, epsilon in zip(panels[0], epsilons, strict=True):
        axes.axhline(1, color="0.3", linewidth=1, zorder=1)
        for trust, looks in LOOKS.items():
            for family, (color, marker) in looks.items():
                rows: Any = frame[(frame["epsilon"] == epsilon) & (frame["family"] == family)]
                rows = rows[rows["trust"] == trust].sort_values("bits")
                look = {"color": COLORS[color], "marker": MARKERS[marker], "linestyle": DASHES[trust]}
                filled = {"markerfacecolor": "white"} if rows["computed"].any() else {}
                axes.plot(rows["bits"], rows["ratio"], label=family, markersize=5, linewidth=1.2, **look, **filled)
        axes.set(xscale="log", yscale="log", ylim=(0.2, 40), xlabel="bits a coordinate")
        axes.set_title(f"ε = {epsilon:g}", loc="left")
        axes.set_yticks([0.3, 1, 3, 10], ["0.3", "1", "3", "10"])
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda bits, _: f"{bits:g}"))
    panels[0, 0].set_ylabel("error ÷ float32's")
    handles, names = panels[0, 0].get_legend_handles_labels()
    of_name = dict(zip(names, handles, strict=True))
    places: dict[str, Any] = {"nobody": "outside lower left", "server": "outside lower right"}
    for trust, place in places.items():
        shown = [name for name in LOOKS[trust] if name in of_name]
        lines: Any = [of_name[name] for name in shown]
        legend = figure.legend(lines, shown, title=TITLES[trust], loc=place, fontsize="small", title_fontsize="small")
        legend.set_alignment("left")
    return figure
