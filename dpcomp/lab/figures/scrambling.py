"""How far the noise scrambles the ranking: the clean top k that survives in the release, round by round."""

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from dpcomp.lab.figures.plots import plot_overlap
from dpcomp.lab.figures.style import COLUMN_INCHES, place_legend, use_style


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
    figure, axes = plt.subplots(figsize=(1.3 * COLUMN_INCHES, COLUMN_INCHES * 0.85))
    plot_overlap(curves, fraction, axes=axes)
    place_legend(figure, axes, loc="center right", bbox_to_anchor=(1, 0.6))
    return figure
