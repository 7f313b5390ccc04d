"""What top-k costs in accuracy, by density, with error feedback and without: claim 1."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures import ResultsFigure
from analysis.tables.trials import trials_of
from dpcomp.lab.figures.style import (
    COLORS,
    COLUMN_INCHES,
    LOOKS,
    plot_means,
    use_style,
)

FEEDBACK, CORRECTED, ALONE = "top-k, feedback", "top-k, momentum correction", "top-k, no feedback"
DENSE, MOMENTUM = "dense, float32", "dense, float32, momentum"
TITLES = {  # of panels by config; panels of one network, which stands before the comma, have one scale
    "fashion_mnist": "Fashion-MNIST, {}",
    "cifar10": "CIFAR-10, < 1 epoch",
    "cifar10_small_long": "24k CIFAR-10, 20 epochs",
}


def draw(panels: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw test accuracy against density, with a panel for each network and noise.

    Args:
        panels: From the title of a panel to its trials: one row for each trial, with the columns `label` (such as
            "dense", "dense, momentum", "top 1 %", "top 1 %, feedback" or "top 1 %, momentum correction"), `seed` and
            `test_accuracy` (a share).

    Returns:
        The figure. Points are means over the seeds, bars span them; the grey band is that of the dense update, and a
        dashed line the mean of dense updates with momentum beside those without.
    """
    use_style()
    size = (2.4 * COLUMN_INCHES, 0.75 * COLUMN_INCHES)
    figure, grid = plt.subplots(1, len(panels), figsize=size, squeeze=False)
    of_network: dict[str, Axes] = {}
    for axes, (title, trials) in zip(grid[0], panels.items(), strict=True):
        first = of_network.setdefault(title.split(",")[0], axes)
        axes.sharey(first)  # what is compared has one scale
        _panel(axes, trials)
        axes.set_title(title, fontsize="small")
        axes.set_ylabel("test accuracy (%)" if axes is first else "")
        axes.get_legend().remove()
    named = [pair for axes in grid[0] for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
    found = {label: handle for handle, label in named}
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=4)
    return figure


def _panel(axes: Axes, trials: pd.DataFrame) -> None:
    percent = trials.assign(accuracy_percent=100 * trials["test_accuracy"])
    dense = percent.loc[percent["label"] == "dense", "accuracy_percent"]
    grey = COLORS[LOOKS[DENSE]]
    axes.axhspan(dense.min(), dense.max(), color=grey, alpha=0.3, linewidth=0)
    axes.axhline(dense.mean(), color=grey, linewidth=1.5, label=DENSE)
    with_momentum = percent.loc[percent["label"] == "dense, momentum", "accuracy_percent"]
    if len(with_momentum):
        axes.axhline(with_momentum.mean(), color=grey, linewidth=1.5, linestyle="--", label=MOMENTUM)
    sparse: Any = percent[percent["label"].str.startswith("top ")].copy()  # beside dense ones at other rates
    sparse["density"] = sparse["label"].str.extract(r"top ([\d.]+) %", expand=False).astype(float)
    ending = sparse["label"].str.partition(", ")[2]
    sparse["method"] = ending.map({"feedback": FEEDBACK, "momentum correction": CORRECTED, "": ALONE})
    methods = [name for name in (FEEDBACK, CORRECTED, ALONE) if (sparse["method"] == name).any()]
    plot_means(axes, sparse, "density", "accuracy_percent", methods, bars=True)
    axes.set(xscale="log", xlabel="coordinates sent (%)")
    axes.set_xlim(16, 0.06)  # fewer to the right
    axes.set_xticks([10, 1, 0.1], ["10", "1", "0.1"])
    axes.minorticks_off()


def panels(folder: Path) -> dict[str, pd.DataFrame]:
    """Return the trials of claim 1 by network and noise; `label` is the method.

    Raises:
        ConfigError: A config has no finished trial.
    """
    found = {}
    for name, title in TITLES.items():
        trials = trials_of(folder / f"{name}.toml")
        trials = trials.assign(label=trials["grid.method"], noise=trials.get("noise", "no noise"))
        for noise, part in trials.groupby("noise", sort=False):
            found[title.format(noise)] = part
    return found


FIGURE = ResultsFigure(source="top_k", read=panels, draw=draw)
