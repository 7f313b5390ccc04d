"""How far the noise scrambles the ranking: the clean top k that survives in the release, round by round."""

import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from dpcomp.lab.figures.style import COLUMN_INCHES, lines_by_method, place_legend, use_style


def draw(curves: pd.DataFrame, fraction: float) -> Figure:
    """Draw, against rounds, what share of an update's k largest values are still among the k largest after the noise.

    Args:
        curves: One row for each round of each trial, with the columns `method`, `round` and `top_k_overlap` (a share),
            as `dpcomp.lab.results.frames.curves` returns them.
        fraction: k/d, the share of the d coordinates that are the top k, of the probe `TopKOverlap`; the horizontal
            line is this share, which chance alone would give.

    Returns:
        The figure of one panel; bands reach from the lowest to the highest seed.
    """
    use_style()
    frame = curves.dropna(subset="top_k_overlap").copy()
    frame["overlap_percent"] = 100 * frame["top_k_overlap"]
    methods = list(dict.fromkeys(curves["method"]))
    figure, axes = plt.subplots(figsize=(1.3 * COLUMN_INCHES, COLUMN_INCHES * 0.85))
    sns.lineplot(
        frame, x="round", y="overlap_percent", errorbar=("pi", 100), ax=axes, **lines_by_method(methods, marked=False)
    )
    axes.axhline(100 * fraction, color="0.2", linewidth=1.5, label=f"chance ({100 * fraction:g} %)", zorder=1.5)
    axes.set(yscale="log", xlabel="round", ylabel=f"clean top {100 * fraction:g} %\nfound in the release (%)")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    place_legend(figure, axes, loc="center right", bbox_to_anchor=(1, 0.6))
    return figure
