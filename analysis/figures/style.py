"""How every figure looks: one colour, marker and dash a method, readable in grey and without red and green."""

from collections.abc import Sequence
from typing import Any

import matplotlib
import seaborn as sns

matplotlib.use("Agg")

COLUMN_INCHES = 3.4  # a paper's column


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
