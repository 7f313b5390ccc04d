"""What audits show, against the ε that is claimed: shipped pipelines and naive mechanisms."""

from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from analysis.figures import ResultsFigure
from analysis.tables.studies import audits_of
from dpcomp.lab.figures.style import COLORS, COLUMN_INCHES, legend_below, use_style

TITLES = {"shipped": "pipelines of dpcomp", "naive": "naive mechanisms"}


def draw(audits: pd.DataFrame) -> Figure:
    """Two panels from a row an audit: `kind`, `case`, `claimed_epsilon`, `shown_epsilon`, `delta`.

    Each row has a bar up to the lower bound that the audit shows, and a line at the ε that is claimed: of a claim that
    is contradicted, the bar reaches beyond the line.
    """
    use_style()
    frame: Any = audits.sort_values("shown_epsilon")
    rows = [int((frame["kind"] == kind).sum()) for kind in TITLES]
    figure, panels = plt.subplots(1, 2, figsize=(2.1 * COLUMN_INCHES, 0.17 * max(rows) + 0.9), sharex=True)
    for axes, (kind, title), color in zip(panels, TITLES.items(), (COLORS[0], COLORS[3]), strict=True):
        part = frame[frame["kind"] == kind]
        sns.barplot(part, x="shown_epsilon", y="case", ax=axes, color=color, label="shown by the audit: at least")
        axes.plot(part["claimed_epsilon"], part["case"], "|", color="0.1", markersize=9, markeredgewidth=2, zorder=3)
        axes.plot([], [], "|", color="0.1", markersize=9, markeredgewidth=2, label="claimed: at most")
        axes.set(xlabel=f"ε at δ = {part['delta'].iloc[0]:g}", ylabel="mechanism")
        axes.legend().remove()
        axes.tick_params(axis="y", labelsize="x-small")
        axes.set_ylim(max(rows) - 0.4, -0.6)
        axes.set_title(title, loc="right")
        axes.grid(visible=True, axis="x")
    legend_below(figure, panels[0], columns=2)
    return figure


FIGURE = ResultsFigure(source="audit", read=audits_of, draw=draw)
