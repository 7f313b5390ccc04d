"""Draws the speed of a private step, by model and batch size, from the records of `step-…`."""

from collections.abc import Iterable
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from benchmarks.harness.records import Record
from benchmarks.harness.rows import Row
from benchmarks.speed.private_step import CHANNELS_LAST, GHOST, HOOKS, SGD
from dpcomp.lab.figures.style import COLORS, COLUMN_INCHES, MARKERS, legend_below, use_style

OURS = "dpcomp"
LOOKS = {OURS: 0, HOOKS: 1, GHOST: 2, CHANNELS_LAST: 7}
LABELS = {OURS: "private: dpcomp", HOOKS: "private: Opacus, hooks", GHOST: "private: Opacus, ghost clipping"}
LABELS[CHANNELS_LAST] = "plain SGD, channels-last"
KEYS = {"model", "batch"}  # settings of a row that is drawn
TICKS = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)


def drawn_steps(records: Iterable[Record]) -> Figure:
    """Draw a panel a model: speeds ÷ that of plain SGD (NCHW) against the batch size; bars span all turns of dpcomp.

    Args:
        records: Of benchmarks of the private step; rows without a batch size or with other settings are left out.
    """
    use_style()
    rows = [row for record in records for row in record.rows if row.unit == "steps/s" and set(row.settings) == KEYS]
    models = list(dict.fromkeys(row.settings["model"] for row in rows))
    figure, panels = plt.subplots(
        1, len(models), figsize=(2.2 * COLUMN_INCHES, 0.95 * COLUMN_INCHES), sharey=True, squeeze=False
    )
    for axes, model in zip(panels[0], models, strict=True):
        _draw_panel(axes, [row for row in rows if row.settings["model"] == model])
        axes.set(title=model, xlabel="batch size", yscale="log")
    panels[0, 0].set_ylabel("speed ÷ speed of plain SGD")
    panels[0, 0].yaxis.set_major_locator(FixedLocator(TICKS))
    panels[0, 0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panels[0, 0].yaxis.set_minor_locator(NullLocator())
    legend_below(figure, panels[0, 0], columns=3)
    return figure


def _draw_panel(axes: Axes, rows: list[Row]) -> None:
    batches = sorted({row.settings["batch"] for row in rows})
    ours = {row.settings["batch"]: row.ratio for row in rows if row.peer == SGD and row.ratio is not None}
    bars: Any = [
        [spread.median - spread.lowest for spread in ours.values()],
        [spread.highest - spread.median for spread in ours.values()],
    ]
    medians = [spread.median for spread in ours.values()]
    axes.errorbar(list(ours), medians, bars, label=LABELS[OURS], markersize=5, linewidth=1.6, zorder=3, **_look(OURS))
    axes.axhline(1.0, color="0.3", linewidth=1, linestyle="--", label="plain SGD")
    for name, speeds in _peers_speeds(rows).items():
        axes.plot(list(speeds), list(speeds.values()), label=LABELS[name], markersize=4, linewidth=0.9, **_look(name))
    axes.set_xscale("log", base=2)
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.15)


def _look(name: str) -> dict[str, Any]:
    return {"color": COLORS[LOOKS[name]], "marker": MARKERS[LOOKS[name]]}


def _peers_speeds(rows: list[Row]) -> dict[str, dict[int, float]]:
    """Return the median speeds of the peers ÷ that of plain SGD, by name and batch size."""
    plain = {row.settings["batch"]: row.peer_figure for row in rows if row.peer == SGD}
    speeds: dict[str, dict[int, float]] = {name: {} for name in LOOKS if name != OURS}
    for row in rows:
        batch = row.settings["batch"]
        if row.peer in speeds and row.peer_figure is not None and (base := plain[batch]) is not None:
            speeds[row.peer][batch] = row.peer_figure.median / base.median
    return {name: found for name, found in speeds.items() if found}
