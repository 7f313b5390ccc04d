"""How many local steps a round pay, at one ε: claim 4."""

from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from analysis.figures import ResultsFigure
from analysis.measures.intervals import mean_interval
from analysis.tables.trials import trials_below
from dpcomp.lab.figures.style import COLORS, COLUMN_INCHES, DASHES, MARKERS, legend_below, use_style

TITLES = {"equal_rounds": "equally many rounds", "equal_steps": "equally many steps"}


def draw(trials: pd.DataFrame) -> Figure:
    """Draw test accuracy against the number of local steps in a round.

    Left: the number of rounds is the same for all; right: the number of all local steps is.

    Args:
        trials: One row for each trial, with the columns `config` (of TITLES), `budget`, `local_steps`, `seed` and
            `test_accuracy` (a share).

    Returns:
        The figure of two panels. Points are means over the seeds; bars are 95 % intervals.
    """
    use_style()
    frame: Any = trials.assign(percent=100 * trials["test_accuracy"], steps=trials["local_steps"].astype(int))
    steps = sorted(frame["steps"].unique())
    budgets = sorted(frame["budget"].unique(), key=float, reverse=True)
    size = (1.3 * COLUMN_INCHES, 0.8 * COLUMN_INCHES)
    figure, panels = plt.subplots(1, len(TITLES), figsize=size, sharey=True)
    for axes, (config, title) in zip(panels, TITLES.items(), strict=True):
        for number, budget in enumerate(budgets):
            part = frame[(frame["config"] == config) & (frame["budget"] == budget)]
            found = [mean_interval(part.loc[part["steps"] == each, "percent"].tolist()) for each in steps]
            means, halves = zip(*found, strict=True)
            look = {"marker": MARKERS[number], "color": COLORS[number], "dashes": DASHES[number] or (1, 0)}
            axes.errorbar(steps, means, yerr=halves, label=f"ε ≤ {budget}", markersize=5, elinewidth=1.2, **look)
        axes.set(title=title, xscale="log", xlabel="local steps a round")
        axes.set_xticks(steps, [str(each) for each in steps])
        axes.minorticks_off()
    panels[0].set_ylabel("test accuracy (%)")
    legend_below(figure, panels[0], columns=2)
    return figure


FIGURE = ResultsFigure(source="local_steps", read=trials_below, draw=draw)
