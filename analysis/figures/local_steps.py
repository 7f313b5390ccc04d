"""How many local steps a round pay, at one ε: claim 4."""

from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from analysis.figures import ResultsFigure
from analysis.measures.intervals import mean_interval
from analysis.tables.trials import trials_below
from dpcomp.lab.figures.style import COLORS, COLUMN_INCHES, MARKERS, use_style

DENSE, SPARSE = "dense", "top 10 %, 4 bits"
PANELS = {  # the configs of a panel and what their clients send
    "digits, equal rounds": {"equal_rounds_dense": DENSE, "equal_rounds": SPARSE},
    "digits, equal steps": {"equal_steps_dense": DENSE, "equal_steps": SPARSE},
    "Fashion-MNIST, equal rounds": {"fashion_mnist": DENSE},
}


def draw(trials: pd.DataFrame) -> Figure:
    """Draw test accuracy against the number of local steps in a round.

    The number of rounds is the same for all, or that of all local steps is.

    Args:
        trials: One row for each trial, with the columns `config` (those of PANELS are drawn), `budget` (its ε),
            `local_steps`, `seed` and `test_accuracy` (a share).

    Returns:
        The figure of a panel a federation; the two of digits have one y-axis. Colors tell ε apart, dashes what is
        sent. Points are means over the seeds; bars are 95 % intervals.
    """
    use_style()
    frame: Any = trials.assign(percent=100 * trials["test_accuracy"], steps=trials["local_steps"].astype(int))
    steps = sorted(frame["steps"].unique())
    budgets = sorted(frame["budget"].unique(), key=float, reverse=True)
    size = (2.1 * COLUMN_INCHES, 0.9 * COLUMN_INCHES)
    figure, panels = plt.subplots(1, len(PANELS), figsize=size)
    panels[0].sharey(panels[1])
    for axes, (title, sent) in zip(panels, PANELS.items(), strict=True):
        for config, what in sent.items():
            of_config = frame[frame["config"] == config]
            for number, budget in enumerate(budgets):
                part = of_config[of_config["budget"] == budget]
                if part.empty:
                    continue
                found = [mean_interval(part.loc[part["steps"] == each, "percent"].tolist()) for each in steps]
                means, halves = zip(*found, strict=True)
                look = {"marker": MARKERS[number], "color": COLORS[number], "linestyle": "-" if what == DENSE else "--"}
                named = f"{what}, ε ≤ {budget}"
                axes.errorbar(steps, means, yerr=halves, label=named, markersize=5, elinewidth=1.2, **look)
        axes.set(xscale="log", xlabel="local steps a round")
        axes.set_title(title, fontsize="small")
        axes.set_xticks(steps, [str(each) for each in steps])
        axes.minorticks_off()
    for axes in (panels[0], panels[-1]):
        axes.set_ylabel("test accuracy (%)")
    named = [pair for axes in panels for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
    found = {label: handle for handle, label in named}
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=3, fontsize="small")
    return figure


FIGURE = ResultsFigure(source="local_steps", read=trials_below, draw=draw)
