"""What compression costs a private federation: test error against bytes, for the uplink and for both ways."""

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from dpcomp.lab.figures.style import COLORS, COLUMN_INCHES, MARKERS, use_style


def draw(frame: pd.DataFrame) -> Figure:
    """Draw each method's test error against its bytes: a panel for the uplink, one for uplink and downlink together.

    Args:
        frame: Of `dpcomp.lab.federated_benchmark.table.frame_of`.

    Returns:
        The figure. Bars are the deviation over the seeds; what is not dpcomp's own is hollow. The grey line is the
        error of the first method.
    """
    use_style()
    figure, panels = plt.subplots(1, 2, figsize=(2 * COLUMN_INCHES, 1.25 * COLUMN_INCHES), sharey=True)
    rows = frame.to_dict("records")
    for axes, title in zip(panels, ("uplink", "uplink and downlink"), strict=True):
        axes.axhline(100 - rows[0]["accuracy"], color="0.6", linewidth=1, zorder=1)
        for place, row in enumerate(rows):
            color = COLORS[place % len(COLORS)]
            axes.errorbar(
                row["uplink"] if title == "uplink" else row["uplink"] + row["downlink"],
                100 - row["accuracy"],
                yerr=None if pd.isna(row["deviation"]) else row["deviation"],
                label=row["method"],
                color=color,
                # Another one for the same colour, where there are more methods than colours.
                marker=MARKERS[(3 * place + place // len(COLORS)) % len(MARKERS)],
                markerfacecolor=color if row["ours"] else "white",
                markersize=6,
                elinewidth=1,
                linestyle="none",
            )
        axes.set(xscale="log", yscale="log", xlabel="bytes of a client in a round")
        axes.set_title(title, loc="left")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:,.0f}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    panels[0].yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5]))
    panels[0].yaxis.set_major_formatter(FuncFormatter(lambda error, _: f"{error:g}"))
    panels[0].yaxis.set_minor_formatter(NullFormatter())
    panels[0].set_ylabel("test error (%)")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3)
    return figure
