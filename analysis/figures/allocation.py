"""Accuracy against rate, by the rule that spreads the bits over the layers: claim 2."""

from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from analysis.figures import ResultsFigure
from analysis.tables.trials import trials_of
from dpcomp.lab.figures.style import COLORS, COLUMN_INCHES, LOOKS, legend_below, plot_means, use_style

RULES = ("equal", "water-filled", "noise-aware")
DENSE = "float32"


def draw(trials: pd.DataFrame) -> Figure:
    """Draw test accuracy against bits per coordinate, with a panel for each noise and entropy coder.

    Args:
        trials: One row for each trial, with the columns `noise`, `entropy`, `allocation` (such as "equal, 2 bits", or
            "float32"), `seed`, `test_accuracy` (a share) and `compression_ratio`.

    Returns:
        The figure; points are means over the seeds, and bars span them, as the grey band spans those of float32.
    """
    use_style()
    frame: Any = trials.copy()
    frame["accuracy_percent"] = 100 * frame["test_accuracy"]
    dense = frame[frame["allocation"] == DENSE]
    frame = frame[frame["allocation"] != DENSE].copy()
    frame["method"] = frame["allocation"].str.split(",").str[0]
    frame["asked"] = frame["allocation"].str.extract(r"(\d+) bits", expand=False).astype(int)
    frame["bits"] = frame.groupby(["noise", "entropy", "allocation"])["compression_ratio"].transform("mean")
    frame["bits"] = 32 / frame["bits"]
    noises, coders = (list(dict.fromkeys(frame[name])) for name in ("noise", "entropy"))
    size = (2.2 * COLUMN_INCHES, 0.75 * COLUMN_INCHES)
    figure, grid = plt.subplots(1, len(noises) * len(coders), figsize=size, sharey=True, squeeze=False)
    cases = [(noise, coder) for noise in noises for coder in coders]
    for axes, (noise, coder) in zip(grid[0], cases, strict=True):
        part = frame[(frame["noise"] == noise) & (frame["entropy"] == coder)].sort_values("asked")
        if noise == "no noise":  # there the rule that knows the noise is water-filling
            part = part[part["method"] != "noise-aware"]
        spread = dense[(dense["noise"] == noise) & (dense["entropy"] == coder)]["accuracy_percent"]
        axes.axhspan(spread.min(), spread.max(), color=COLORS[LOOKS[DENSE]], alpha=0.3, linewidth=0)
        axes.axhline(spread.mean(), color=COLORS[LOOKS[DENSE]], linewidth=1, label=DENSE, zorder=1)
        plot_means(axes, part, "bits", "accuracy_percent", RULES, bars=True)
        axes.set(title=f"{noise}, {coder}", xlabel="bits a coordinate", ylabel="test accuracy (%)", xscale="log")
        axes.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
        axes.minorticks_off()
    legend_below(figure, grid[0, -1], columns=4)
    return figure


FIGURE = ResultsFigure(source="allocation/digits.toml", read=trials_of, draw=draw)
