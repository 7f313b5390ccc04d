"""What to do with an old residual, by how long its client was away."""

import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from analysis.figures.style import COLUMN_INCHES, by_method, use_style


def draw(rounds: pd.DataFrame) -> Figure:
    """One panel from a row a round of every trial: `policy`, `absence` (its length in words), `seed`, `round`,
    `test_accuracy`. Differences are taken seed by seed, from what keeping the residual ends with; bars are standard
    errors."""
    use_style()
    frame = rounds.dropna(subset="test_accuracy").sort_values("round")
    ends = frame.groupby(["policy", "absence", "seed"], sort=False)["test_accuracy"].last().unstack("policy")
    gains = 100 * ends.drop(columns="keep").sub(ends["keep"], axis=0)
    long = gains.reset_index().melt(["absence", "seed"], var_name="method", value_name="points")
    lengths = sorted(long["absence"].unique(), key=lambda words: int(words.split()[2]))
    long["absence"] = pd.Categorical(long["absence"], lengths, ordered=True)
    figure, axes = plt.subplots(figsize=(1.3 * COLUMN_INCHES, COLUMN_INCHES * 0.85))
    style = by_method(sorted(long["method"].unique()))
    sns.lineplot(
        long.sort_values("absence"),
        x="absence",
        y="points",
        errorbar="se",
        err_style="bars",
        markers=True,
        ax=axes,
        **style,
    )
    axes.axhline(0, color="0.2", linewidth=1.0, zorder=1.5)
    axes.set(xlabel="length of an absence; half of the time away", ylabel="accuracy, less that\nof keeping it (points)")
    axes.legend(title="the residual", loc="best")
    return figure
