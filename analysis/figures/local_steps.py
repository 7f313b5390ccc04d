"""How many local steps a round pay, at one ε: claim 4."""

from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from analysis.figures import ResultsFigure
from analysis.measures.intervals import mean_interval
from analysis.tables.trials import trials_below
from dpcomp.lab.figures.style import COLORS, COLUMN_INCHES, DASHES, MARKERS, use_style

TITLES = {
    "equal_rounds": "digits, equal rounds",
    "equal_steps": "digits, equal steps",
    "fashion_mnist": "Fashion-MNIST, equal rounds",
}


def draw(trials: pd.DataFrame) -> Figure:
    """Draw test accuracy against the number of local steps in a round.

    The number of rounds is the same for all, or that of all local steps is.

    Args:
        trials: One row for each trial, with the columns `config` (of TITLES), `budget` (its ε), `local_steps`, `seed`
            and `test_accuracy` (a share).

    Returns:
        The figure of a panel a config; the two of digits have one y-axis. Points are means over the seeds; bars are
        95 % intervals.
    """
    use_style()
    frame: Any = trials.assign(percent=100 * trials["test_accuracy"], steps=trials["local_steps"].astype(int))
    steps = sorted(frame["steps"].unique())
    budgets = sorted(frame["budget"].unique(), key=float, reverse=True)
    size = (1.9 * COLUMN_INCHES, 0.8 * COLUMN_INCHES)
    figure, panels = plt.subplots(1, len(TITLES), figsize=size)
    panels[0].sharey(panels[1])
    for axes, (config, title) in zip(panels, TITLES.items(), strict=True):
        of_config = frame[frame["config"] == config]
        for number, budget in enumerate(budgets):
            part = of_config[of_config["budget"] == budget]
            if part.empty:
                continue
            found = [mean_interval(part.loc[part["steps"] == each, "percent"].tolist()) for each in steps]
            means, halves = zip(*found, strict=True)
            look = {"marker": MARKERS[number], "color": COLORS[number], "dashes": DASHES[number] or (1, 0)}
            axes.errorbar(steps, means, yerr=halves, label=f"ε ≤ {budget}", markersize=5, elinewidth=1.2, **look)
        axes.set(xscale="log", xlabel="local steps a round")
        axes.set_title(title, fontsize="small")
        axes.set_xticks(steps, [str(each) for each in steps])
        axes.minorticks_off()
        axes.legend(loc="lower right")
    for axes in (panels[0], panels[-1]):
        axes.set_ylabel("test accuracy (%)")
    return figure


FIGURE = ResultsFigure(source="local_steps", read=trials_below, draw=draw)
