"""What to do with an old residual, by how long its client was away."""

from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from analysis.figures import ResultsFigure
from analysis.measures.intervals import mean_interval
from analysis.tables.trials import rounds_of
from dpcomp.lab.figures.style import COLUMN_INCHES, by_method, use_style

LAST = 5  # evaluations whose mean counts: one alone moves by points from the next


def draw(rounds: pd.DataFrame) -> Figure:
    """Draw the accuracy that each policy for old residuals gains over keeping them, against the longest absence.

    Args:
        rounds: One row for each round of each trial, with the columns `policy`, `absence` (such as "1 to 5 rounds"),
            `seed`, `round` and `test_accuracy` (a share).

    Returns:
        The figure of one panel. Differences are computed for each seed, and bars are 95 % intervals.
    """
    use_style()
    long = gains(rounds)
    style = by_method(sorted(long["method"].unique()))
    interval: Any = _interval
    figure, axes = plt.subplots(figsize=(1.3 * COLUMN_INCHES, COLUMN_INCHES * 0.85))
    sns.pointplot(
        long,
        x="longest",
        y="points",
        hue="method",
        hue_order=style["hue_order"],
        palette=style["palette"],
        markers=list(style["markers"].values()),
        linestyles=["-", "--"],
        errorbar=interval,
        dodge=True,
        linewidth=1.5,
        ax=axes,
    )
    axes.axhline(0, color="0.2", linewidth=1.0, zorder=0.5)
    axes.set(
        xlabel="longest absence (rounds); half of the time away", ylabel="accuracy, less that\nof keeping it (points)"
    )
    axes.legend(title="the residual", loc="best")
    return figure


def _interval(points: pd.Series) -> tuple[float, float]:
    mean, half = mean_interval(points.tolist())
    return mean - half, mean + half


def gains(rounds: pd.DataFrame) -> pd.DataFrame:
    """Compute by how many percentage points the final accuracy of each policy exceeds that of keeping the residual.

    Args:
        rounds: As for `draw`.

    Returns:
        One row for each policy, absence and seed, with the columns `method` (the policy), `longest` (the longest
        absence in rounds), `seed` and `points`.
    """
    frame = rounds.dropna(subset="test_accuracy").sort_values("round")
    trials = frame.groupby(["policy", "absence", "seed"], sort=False)["test_accuracy"]
    ends = trials.apply(lambda accuracy: accuracy.tail(LAST).mean()).unstack("policy")
    points = 100 * ends.drop(columns="keep").sub(ends["keep"], axis=0)
    long = points.reset_index().melt(["absence", "seed"], var_name="method", value_name="points")
    return long.assign(longest=long["absence"].str.split().str[2].astype(int))


FIGURE = ResultsFigure(source="faults/residuals.toml", read=rounds_of, draw=draw)
