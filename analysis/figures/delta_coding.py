"""What it saves to code an update against the last broadcast, by the noise on it: claim 5."""

from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from analysis.figures import ResultsFigure
from analysis.tables.trials import rounds_of
from dpcomp.lab.figures.style import COLUMN_INCHES, plot_means, use_style

PREDICTED, DIRECT = "last broadcast", "nothing"


def draw(rounds: pd.DataFrame) -> Figure:
    """Draw the share of payload bytes that prediction from the last broadcast saves, against the noise multiplier.

    Args:
        rounds: One row for each round of each trial, with the columns `predict` (PREDICTED or DIRECT),
            `noise_multiplier`, `seed`, `round` and `payload_bytes`.

    Returns:
        The figure of one panel; savings are computed for each seed over all rounds and over the first quarter of them,
        and bars span the seeds.
    """
    use_style()
    saved: Any = savings(rounds)
    saved["method"] = "over the whole run"
    first: Any = rounds[rounds["round"] <= rounds["round"].max() // 4]
    early: Any = savings(first)
    early["method"] = "in its first quarter"
    frame = pd.concat([saved, early], ignore_index=True)
    figure, axes = plt.subplots(figsize=(1.3 * COLUMN_INCHES, 0.8 * COLUMN_INCHES))
    frame["place"] = frame["noise_multiplier"].rank(method="dense") - 1
    methods = ["over the whole run", "in its first quarter"]
    plot_means(axes, frame, "place", "saved_percent", methods, bars=True)
    levels = sorted(frame["noise_multiplier"].unique())
    axes.set_xticks(range(len(levels)), [f"{level:g}" for level in levels])
    axes.axhline(0, color="0.2", linewidth=1.0, zorder=0.5)
    axes.set(xlabel="noise multiplier z", ylabel="bytes saved by coding against\nthe last broadcast (%)")
    axes.legend(title=None)
    return figure


def savings(rounds: pd.DataFrame) -> pd.DataFrame:
    """Compute the percentage of payload bytes that prediction saves.

    Args:
        rounds: As for `draw`.

    Returns:
        One row for each noise multiplier and seed, with the columns `noise_multiplier`, `seed` and `saved_percent`.
    """
    sums: Any = rounds.groupby(["noise_multiplier", "seed", "predict"])["payload_bytes"].sum()
    sums = sums.unstack("predict")
    saved = 100 * (1 - sums[PREDICTED] / sums[DIRECT])
    frame = saved.rename("saved_percent").reset_index()
    return frame.assign(noise_multiplier=frame["noise_multiplier"].astype(float))


FIGURE = ResultsFigure(source="delta_coding/fashion_mnist.toml", read=rounds_of, draw=draw)
