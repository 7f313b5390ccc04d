"""How far a support still resembles the last one, by whose top-k it is; and whether the loss could be foretold."""

from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures import ResultsFigure
from analysis.figures.efficiency import TASKS, places, plot_by_noise
from analysis.tables.studies import losses_of
from dpcomp.lab.figures.style import COLUMN_INCHES, by_method, use_style

WHOSE = {
    "clean_overlap": "the clean update's top-k",
    "noisy_overlap": "the noisy update's top-k",
    "sent_overlap": "what is sent with feedback",
}
FORETOLD = {
    "closed_form": "h(r)",
    "by_layer": "h(r), layer by layer",
    "with_values": "… and the bits a value as sent",
}
POINTS = 3  # how far off a prediction may be


def draw(losses: pd.DataFrame) -> Figure:
    """Draw the overlap of consecutive supports against the noise multiplier, and measured against predicted losses.

    Left: the last task at its largest batch and the middle density. Points are means over phases, bars span the seeds'
    means; squares are the overlap of the noisy top-k that theory predicts from the clean vectors. Right: noise before
    top-k, without feedback. Each point is one setting and phase, the mean over its seeds; the band around the diagonal
    is 3 percentage points wide on either side.

    Args:
        losses: The table that `analysis.tables.noise_losses.at_equal_density` returns.

    Returns:
        The figure of two panels.
    """
    use_style()
    sent: Any = losses[(losses["order"] == "noise first") & (losses["trust"] == "nobody")]
    size = (2.2 * COLUMN_INCHES, COLUMN_INCHES)
    figure, (left, right) = plt.subplots(1, 2, figsize=size)
    density = sorted(sent["density"].unique())[len(sent["density"].unique()) // 2]
    chosen = sent[(sent["density"] == density) & (sent["bits"] == sent["bits"].min()) & (sent["feedback"] == 1)]
    task, batch = max(chosen.groupby(["task", "batch"]).groups)
    chosen = chosen[(chosen["task"] == task) & (chosen["batch"] == batch)]
    means: Any = chosen.groupby(["noise_multiplier", "seed"])[[*WHOSE, "expected_overlap"]].mean().reset_index()
    tall = means.melt(
        id_vars=["noise_multiplier", "seed"], value_vars=list(WHOSE), var_name="column", value_name="overlap"
    )
    tall["method"] = tall["column"].map(WHOSE)
    plot_by_noise(left, tall, "overlap", list(WHOSE.values()))
    foretold = means.groupby("noise_multiplier")["expected_overlap"].mean()
    left.plot(
        foretold.index.map(places(means)),
        foretold,
        "s",
        color="0.1",
        fillstyle="none",
        label="the noisy one's, predicted from the clean",
    )
    left.axhline(density, color="0.2", linewidth=1.2, zorder=1.5, label=f"chance ({100 * density:g} %)")
    left.set(
        ylabel=f"overlap of consecutive top {100 * density:g} %", ylim=(-0.02, 1.45), yticks=[0, 0.25, 0.5, 0.75, 1]
    )
    left.set_title(f"{TASKS.get(task, task)}, batch {batch}")
    right.set_title("all cases, noise first, no feedback")
    left.legend(title=None, loc="upper right", fontsize="x-small")
    _compare(sent, right)
    return figure


def _compare(sent: Any, axes: Axes) -> None:
    alone = sent[(sent["feedback"] == 0) & (sent["noise_multiplier"] > 0)]
    keys = ["task", "batch", "phase", "density", "bits", "noise_multiplier"]
    means = alone.groupby(keys)[["loss", *FORETOLD]].mean().reset_index()
    tall = means.melt(id_vars=[*keys, "loss"], value_vars=list(FORETOLD), var_name="column", value_name="foretold")
    tall["method"] = tall["column"].map(FORETOLD)
    style = by_method(list(FORETOLD.values()))
    sns.scatterplot(tall, x="foretold", y="loss", s=14, alpha=0.7, zorder=3, ax=axes, **style)
    low, high = -5.0, max(40.0, float(tall[["foretold", "loss"]].max().max()) + 2)
    axes.plot([low, high], [low, high], color="0.2", linewidth=1.2, zorder=1.5)
    axes.fill_between(
        [low, high], [low - POINTS, high - POINTS], [low + POINTS, high + POINTS], color="0.88", zorder=0.5
    )
    axes.set(xlabel="predicted loss of ratio (%)", ylabel="measured (%)", xlim=(low, high), ylim=(low, high))
    axes.legend(title=None, loc="lower right", fontsize="x-small")


FIGURE = ResultsFigure(source="scrambling", read=losses_of, draw=draw)
