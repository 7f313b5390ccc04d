"""What it saves to code an update against the last broadcast, by the noise on it: claim 5."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures import ResultsFigure
from analysis.figures.efficiency import NOISE, places
from analysis.measures.intervals import mean_interval
from analysis.tables.trials import rounds_of
from dpcomp.lab.figures.style import COLORS, COLUMN_INCHES, use_style

PREDICTED, DIRECT = "last broadcast", "nothing"


def draw(rounds: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw what prediction from the last broadcast saves, against the noise multiplier.

    Left: the share of payload bytes, of a run with prediction beside one without. Right: bits a coordinate of each
    release at one error, beside those that the correlation foretells.

    Args:
        rounds: "fashion_mnist": one row for each round of each trial, with the columns `predict` (PREDICTED or DIRECT),
            `noise_multiplier`, `seed`, `round` and `payload_bytes`; "digits": the same with `saved_bits` and
            `foretold_bits`, bits a coordinate.

    Returns:
        The figure of two panels; points are means over the seeds, bars are 95 % intervals.
    """
    use_style()
    figure, (left, right) = plt.subplots(1, 2, figsize=(1.3 * COLUMN_INCHES, 0.75 * COLUMN_INCHES))
    _points(left, savings(rounds["fashion_mnist"]), "saved_percent", fmt="o", color=COLORS[0])
    left.set(ylabel="bytes saved (%)", title="Fashion-MNIST")
    digits: Any = rounds["digits"].assign(noise_multiplier=rounds["digits"]["noise_multiplier"].astype(float))
    means: Any = digits.groupby(["noise_multiplier", "seed"])[["saved_bits", "foretold_bits"]].mean().reset_index()
    _points(right, means, "saved_bits", fmt="o", color=COLORS[0], label="saved")
    looks = {"fmt": "s", "color": "0.1", "fillstyle": "none", "markersize": 8, "label": "predicted by ρ"}
    _points(right, means, "foretold_bits", **looks)
    right.set(ylabel="bits saved a coordinate", title="digits, at one error")
    right.legend(loc="upper right", fontsize="small")
    return figure


def _points(axes: Axes, frame: Any, column: str, **looks: Any) -> None:
    found = places(frame)
    of_noise = [mean_interval(frame.loc[frame["noise_multiplier"] == noise, column].tolist()) for noise in found]
    means, halves = np.transpose(of_noise)
    axes.errorbar(list(found.values()), means, yerr=halves, elinewidth=1.2, **looks)
    axes.axhline(0, color="0.2", linewidth=1.0, zorder=0.5)
    axes.set_xticks(list(found.values()), [NOISE[noise] for noise in found], fontsize="small")
    axes.set_xlabel("noise multiplier z")


def savings(rounds: pd.DataFrame) -> pd.DataFrame:
    """Compute the percentage of payload bytes that prediction saves.

    Args:
        rounds: One row for each round of each trial, with the columns `predict`, `noise_multiplier`, `seed` and
            `payload_bytes`.

    Returns:
        One row for each noise multiplier and seed, with the columns `noise_multiplier`, `seed` and `saved_percent`.
    """
    sums: Any = rounds.groupby(["noise_multiplier", "seed", "predict"])["payload_bytes"].sum()
    sums = sums.unstack("predict")
    saved = 100 * (1 - sums[PREDICTED] / sums[DIRECT])
    frame = saved.rename("saved_percent").reset_index()
    return frame.assign(noise_multiplier=frame["noise_multiplier"].astype(float))


def read(folder: Path) -> dict[str, pd.DataFrame]:
    """Return the rounds of claim 5 by task. Raises ConfigError where a config has no finished trial."""
    return {task: rounds_of(folder / f"{task}.toml") for task in ("fashion_mnist", "digits")}


FIGURE = ResultsFigure(source="delta_coding", read=read, draw=draw)
