"""The bytes that a share of the clean update's energy takes under noise, by the order of noise and sparsification."""

from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from analysis.figures import ResultsFigure
from analysis.figures.efficiency import METHODS, TASKS, plot_by_noise
from analysis.tables.studies import energies_of
from dpcomp.lab.figures.style import COLUMN_INCHES, legend_below, use_style

ORDERS = {"noise first": METHODS[0], "support first": METHODS[2]}


def draw(energies: pd.DataFrame) -> Figure:
    """Draw the payload bytes that capture a share of the clean update's energy, against the noise multiplier.

    Each task and batch size is a panel. Bytes are a percentage of those of the dense float32 update.

    Args:
        energies: The table that `analysis.tables.noise_losses.at_equal_energy` returns; of its shares of energy the
            largest is drawn.

    Returns:
        The figure. Points are means over phases and seeds, bars span the seeds' means over phases.
    """
    use_style()
    share = energies["energy_share"].max()
    frame: Any = energies[energies["energy_share"] == share].copy()
    frame["method"] = frame["order"].map(ORDERS)
    frame["percent"] = 100 * frame["payload_bytes"] / (4 * frame["coordinates"])
    cases: Any = list(frame.groupby(["task", "batch"]).groups)[::-1]
    size = (2.2 * COLUMN_INCHES, 0.8 * COLUMN_INCHES)
    figure, grid = plt.subplots(1, len(cases), figsize=size, sharey=True, squeeze=False)
    for axes, (task, batch) in zip(grid[0], cases, strict=True):
        part = frame[(frame["task"] == task) & (frame["batch"] == batch)]
        means = part.groupby(["method", "noise_multiplier", "seed"])["percent"].mean().reset_index()
        plot_by_noise(axes, means, "percent", list(ORDERS.values()))
        axes.set(yscale="log", title=f"{TASKS.get(task, task)}, batch {batch}")
        axes.set_ylabel(f"payload for {100 * share:g} % of the\nclean energy (% of float32, log)", fontsize="small")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    legend_below(figure, grid[0, 0], columns=2)
    return figure


FIGURE = ResultsFigure(source="scrambling", read=energies_of, draw=draw)
