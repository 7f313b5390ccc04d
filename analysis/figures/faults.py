"""What a faulty network costs, in accuracy and in bytes, with version checks and messages sent again, and without."""

from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from analysis.figures import ResultsFigure
from analysis.tables.trials import rounds_of
from dpcomp.lab.figures.style import COLUMN_INCHES, plot_means, use_style

TRAFFIC = ("uplink_bytes", "downlink_bytes", "control_bytes")
LAST = 5  # evaluations whose mean counts: one alone moves by points from the next
PROTOCOLS = {"version checks": "checked, sent again", "no version checks": "neither"}


def draw(rounds: pd.DataFrame) -> Figure:
    """Draw test accuracy (left) and transmitted MiB (right) against the rate of faults.

    Args:
        rounds: One row for each round of each trial, with the columns `codec`, `protocol`, `faults` (such as "5 %";
            those of another form are left out), `seed`, `round`, `test_accuracy` (a share), and the bytes of the round
            in the columns TRAFFIC.

    Returns:
        The figure; bars span the seeds.
    """
    use_style()
    by = ["codec", "protocol", "faults", "seed"]
    frame: Any = rounds[rounds["faults"].str.endswith(" %")]
    frame = frame.sort_values("round")
    runs = frame.groupby(by)
    ends = runs["test_accuracy"].agg(lambda accuracy: accuracy.dropna().tail(LAST).mean()).reset_index()
    ends["mebibytes"] = runs[list(TRAFFIC)].sum().sum(axis=1).to_numpy() / 2**20
    ends["accuracy_percent"] = 100 * ends["test_accuracy"]
    ends["rate"] = ends["faults"].str.removesuffix(" %").astype(float)
    ends["method"] = ends["codec"] + ", " + ends["protocol"].map(PROTOCOLS.__getitem__)
    methods = sorted(ends["method"].unique(), reverse=True)
    figure, (left, right) = plt.subplots(1, 2, figsize=(2.2 * COLUMN_INCHES, COLUMN_INCHES * 0.85))
    plot_means(left, ends, "rate", "accuracy_percent", methods, bars=True)
    plot_means(right, ends, "rate", "mebibytes", methods, bars=True, legend=False)
    faults = "messages lost, repeated, held back (% each)"
    left.set(xlabel=faults, ylabel="test accuracy (%)")
    right.set(xlabel=faults, ylabel="all traffic of a run (MiB)", yscale="log")
    left.legend(title=None, loc="lower left")
    return figure


FIGURE = ResultsFigure(source="faults/versions.toml", read=rounds_of, draw=draw)
