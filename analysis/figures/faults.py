"""What a faulty network costs, in accuracy and in bytes, with version checks and without."""

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from analysis.figures import ResultsFigure
from analysis.tables.trials import rounds_of
from dpcomp.lab.figures.style import COLUMN_INCHES, plot_means, use_style

TRAFFIC = ("uplink_bytes", "downlink_bytes", "control_bytes")


def draw(rounds: pd.DataFrame) -> Figure:
    """Draw test accuracy (left) and transmitted MiB (right) against the rate of faults.

    Args:
        rounds: One row for each round of each trial, with the columns `protocol`, `faults` (such as "5 %"), `seed`,
            `round`, `test_accuracy` (a share), and the bytes of the round in the columns TRAFFIC.

    Returns:
        The figure; bars span the seeds.
    """
    use_style()
    frame = rounds.sort_values("round")
    ends = pd.DataFrame(frame.groupby(["protocol", "faults", "seed"], sort=False)["test_accuracy"].last()).reset_index()
    sums = pd.DataFrame(frame.groupby(["protocol", "faults", "seed"], sort=False)[list(TRAFFIC)].sum()).reset_index()
    ends["mebibytes"] = sums[list(TRAFFIC)].sum(axis=1) / 2**20
    ends["accuracy_percent"] = 100 * ends["test_accuracy"]
    ends["rate"] = ends["faults"].str.removesuffix(" %").astype(float)
    ends["method"] = ends["protocol"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(2.2 * COLUMN_INCHES, COLUMN_INCHES * 0.85))
    protocols = sorted(ends["method"].unique(), reverse=True)
    plot_means(left, ends, "rate", "accuracy_percent", protocols, bars=True)
    plot_means(right, ends, "rate", "mebibytes", protocols, bars=True, legend=False)
    faults = "messages lost, repeated, held back (% each)"
    left.set(xlabel=faults, ylabel="test accuracy at the end (%)")
    right.set(xlabel=faults, ylabel="all traffic of a run (MiB)", ylim=(0, None))
    left.legend(title=None, loc="lower left")
    return figure


FIGURE = ResultsFigure(source="faults/versions.toml", read=rounds_of, draw=draw)
