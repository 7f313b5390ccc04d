"""What to do with an old residual, by how long its client was away."""

import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from analysis.figures.style import COLUMN_INCHES, by_method, use_style


def draw(rounds: pd.DataFrame) -> Figure:
    """One panel from a row a round of every trial: `policy`, `absence` (its length in words), `seed`, `round`,
    `test_accuracy`. Bands span the seeds."""
    use_style()
    frame = rounds.dropna(subset="test_accuracy").sort_values("round")
    ends = pd.DataFrame(frame.groupby(["policy", "absence", "seed"], sort=False)["test_accuracy"].last()).reset_index()
    ends["accuracy_percent"] = 100 * ends["test_accuracy"]
    ends["method"] = ends["policy"]
    figure, axes = plt.subplots(figsize=(1.3 * COLUMN_INCHES, COLUMN_INCHES * 0.85))
    style = by_method(sorted(ends["method"].unique(), reverse=True))
    sns.lineplot(ends, x="absence", y="accuracy_percent", errorbar=("pi", 100), markers=True, ax=axes, **style)
    axes.set(xlabel="length of an absence, half of the time away", ylabel="test accuracy at the end (%)")
    axes.legend(title="residual", loc="best")
    return figure
