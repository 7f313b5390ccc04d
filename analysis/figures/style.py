"""How every figure looks: one colour, marker and dash a method, readable in grey and without red and green."""

from collections.abc import Sequence
from typing import Any

import matplotlib
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

matplotlib.use("Agg")

COLUMN_INCHES = 3.4  # a paper's column
MOST_INSIDE = 5  # names that leave room for the curves


def use_style() -> None:
    """Set seaborn's theme for small figures."""
    sns.set_theme(
        context="paper",
        style="whitegrid",
        palette="colorblind",
        rc={
            "figure.constrained_layout.use": True,
            "savefig.dpi": 200,
            "axes.titlesize": "medium",
            "legend.frameon": False,
        },
    )


def by_method(methods: Sequence[str]) -> dict[str, Any]:
    """seaborn's arguments that give each method its own colour, marker and dash, in the given order."""
    names = list(methods)
    return {
        "hue": "method",
        "style": "method",
        "hue_order": names,
        "style_order": names,
        "palette": sns.color_palette("colorblind", len(names)),
    }


def place_legend(figure: Figure, axes: Axes, **inside: Any) -> None:
    """The names inside the axes, where matplotlib's arguments say; of many below the figure, which grows for them."""
    handles, names = axes.get_legend_handles_labels()
    if len(names) <= MOST_INSIDE:
        axes.legend(title=None, **inside)
        return
    if (drawn := axes.get_legend()) is not None:
        drawn.remove()
    columns = 2 if figure.get_figwidth() > 2 * COLUMN_INCHES else 1
    figure.legend(handles, names, loc="outside lower center", ncols=columns)
    figure.set_figheight(figure.get_figheight() + 0.17 * -(-len(names) // columns))
