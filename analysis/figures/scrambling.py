"""How far the noise scrambles the ranking: the clean top k that survives in the release, round by round."""

import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from analysis.figures.style import COLUMN_INCHES, by_method, use_style


def draw(curves: pd.DataFrame, fraction: float) -> Figure:
    """One panel from a row a round (`method`, `round`, `top_k_overlap`); the dashed line is chance, k/d."""
    use_style()
    frame = curves.dropna(subset="top_k_overlap").copy()
    frame["overlap_percent"] = 100 * frame["top_k_overlap"]
    methods = list(dict.fromkeys(curves["method"]))
    figure, axes = plt.subplots(figsize=(1.3 * COLUMN_INCHES, COLUMN_INCHES * 0.85))
    sns.lineplot(frame, x="round", y="overlap_percent", errorbar=("pi", 100), ax=axes, **by_method(methods))
    axes.axhline(100 * fraction, color="0.3", linestyle=":", linewidth=1)
    axes.annotate("chance", (0, 100 * fraction), xytext=(2, 2), textcoords="offset points", fontsize="x-small")
    axes.set(yscale="log", xlabel="round", ylabel=f"overlap of clean and released\ntop {100 * fraction:g} % (%)")
    axes.legend(title=None)
    return figure
