"""Which structure of a support noise destroys: the loss by what the coder of supports may use: claim 3."""

from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from analysis.figures import ResultsFigure
from analysis.figures.efficiency import TASKS
from analysis.measures.intervals import mean_interval
from analysis.tables.studies import losses_of
from dpcomp.lab.figures.style import COLORS, COLUMN_INCHES, MARKERS, legend_below, use_style

CODERS = {
    "both": "last support\nand layers",
    "layers": "layers' densities\nalone",
    "memory": "last support\nalone",
    "neither": "neither",
}
DENSITIES = (0.01, 0.1)
APART = 0.2  # rows, between the cases of a coder


def draw(losses: pd.DataFrame) -> Figure:
    """Draw the loss of compression ratio at the most noise, by what an ideal coder of the same supports may use.

    A panel for each of DENSITIES, a row for each coder, a mark for each task and batch size. Noise stands first, values
    have the fewest bits, and there is no feedback.

    Args:
        losses: The table that `analysis.tables.noise_losses.at_equal_density` returns.

    Returns:
        The figure of two panels. Marks are means over phases and seeds; bars are 95 % intervals over the seeds.
    """
    use_style()
    rows: Any = losses[(losses["order"] == "noise first") & (losses["trust"] == "nobody") & (losses["feedback"] == 0)]
    rows = rows[(rows["bits"] == rows["bits"].min()) & (rows["noise_multiplier"] == rows["noise_multiplier"].max())]
    cases: Any = list(rows.groupby(["task", "batch"], sort=True).groups)[::-1]
    size = (1.3 * COLUMN_INCHES, 0.85 * COLUMN_INCHES)
    figure, panels = plt.subplots(1, len(DENSITIES), figsize=size, sharex=True, sharey=True)
    for axes, density in zip(panels, DENSITIES, strict=True):
        for number, (task, batch) in enumerate(cases):
            part: Any = rows[(rows["task"] == task) & (rows["batch"] == batch) & (rows["density"] == density)]
            of_seeds = part.groupby("seed")[[f"coder_{name}" for name in CODERS]].mean()
            found = [mean_interval(of_seeds[f"coder_{name}"].tolist()) for name in CODERS]
            places = [place + APART * (number - (len(cases) - 1) / 2) for place in range(len(CODERS))]
            look = {"fmt": MARKERS[number], "color": COLORS[number], "markersize": 5, "elinewidth": 1.2}
            means, halves = zip(*found, strict=True)
            axes.errorbar(means, places, xerr=halves, label=f"{TASKS.get(task, task)}, batch {batch}", **look)
        axes.axvline(0, color="0.2", linewidth=1)
        axes.set(title=f"top {100 * density:g} %", xlabel="loss of ratio (%)")
        axes.set_yticks(range(len(CODERS)), list(CODERS.values()), fontsize="small")
        axes.grid(visible=False, axis="y")
    panels[0].set_ylim(len(CODERS) - 0.5, -0.5)
    panels[0].set_ylabel("the coder knows")
    legend_below(figure, panels[0], columns=2)
    return figure


FIGURE = ResultsFigure(source="scrambling", read=losses_of, draw=draw)
