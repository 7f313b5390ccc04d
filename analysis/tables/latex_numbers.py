"""Numbers for a text: tables of results as names and what is printed: `top_k.cifar10.dense.accuracy` is 43.1 (0.2).

A name is the table's, then the row's labels, then the column, with dots between; of labels letters and digits stay,
and what lies between becomes an underscore. What is printed is LaTeX, for math mode: a standard deviation stands in
parentheses, and half of a 95 % interval behind ±.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.measures.intervals import mean_interval

Numbers = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Column:
    """The format of a column's values over the seeds: their mean, and with `spread` their standard deviation.

    Args:
        digits: The number of decimals.
        scale: What a value is multiplied by before it is rounded, such as 100 for percent.
        spread: Whether the standard deviation is printed after the mean, if there are two seeds or more.
    """

    digits: int = 1
    scale: float = 1.0
    spread: bool = True

    def text(self, values: Sequence[float]) -> str:
        """Return the LaTeX of the values, for math mode; the mean alone for one value or without `spread`."""
        found = self.scale * np.asarray(values, dtype=np.float64)
        rounded = round(float(found.mean()), self.digits) + 0.0  # not −0.0
        mean = f"{rounded:,.{self.digits}f}".replace(",", "{,}")
        if not self.spread or len(found) < 2:
            return mean
        return rf"{mean}\,({found.std(ddof=1):.{self.digits}f})"


ACCURACY = {
    "accuracy": ("test_accuracy", Column(scale=100)),
    "mean": ("test_accuracy", Column(scale=100, spread=False)),
    "bytes": ("payload_bytes", Column(digits=0, spread=False)),
    "ratio": ("compression_ratio", Column(digits=0, spread=False)),
    "ratio1": ("compression_ratio", Column(digits=1, spread=False)),
    "total": ("total_ratio", Column(digits=0, spread=False)),
    "uplink_mib": ("uplink_bytes", Column(digits=2, scale=2**-20, spread=False)),
    "seeds": ("seed", Column(digits=0, spread=False)),
}


def of_trials(name: str, trials: pd.DataFrame, by: Sequence[str], reference: str | None = None) -> Numbers:
    """Format the numbers of ACCURACY, and the tuning, of each group of trials with the same labels.

    Args:
        name: The table's name, with which the names of its numbers begin.
        trials: One row for each trial.
        by: The columns whose labels make the groups.
        reference: A label of the last column of `by`. The groups then also get `difference`, by how many percentage
            points they are more accurate than it, paired by seed, with its 95 % interval.

    Returns:
        LaTeX by name.
    """
    found: Numbers = {}
    by = list(by)
    for labels, group in trials.groupby(by, sort=False, dropna=False):
        row = group.sort_values("seed")
        path = ".".join([name, *map(slug, labels if isinstance(labels, tuple) else (labels,))])
        for column, (source, how) in ACCURACY.items():
            found[f"{path}.{column}"] = how.text(row[source].tolist())
        found[f"{path}.seeds"] = str(row["seed"].nunique())
        if "tuning" in row:
            found[f"{path}.tuning"] = str(row["tuning"].iloc[0]).rpartition("=")[2]
    if reference is not None:
        found |= _differences(name, trials, by, reference)
    return found


def _differences(name: str, trials: pd.DataFrame, by: list[str], reference: str) -> Numbers:
    table: Any = trials.set_index([*by, "seed"])["test_accuracy"]
    base = table.xs(reference, level=by[-1])
    gains = table.groupby(by, sort=False).apply(
        lambda group: (group.to_numpy() - base.reindex(group.droplevel(by[-1]).index).to_numpy()).tolist()
    )
    found: Numbers = {}
    for labels, values in gains.items():
        path = ".".join([name, *map(slug, labels if isinstance(labels, tuple) else (labels,))])
        mean, half = mean_interval(values)
        found[f"{path}.difference"] = rf"{round(100 * mean, 1) + 0.0:.1f} \pm {100 * half:.1f}"  # not −0.0
    return found


def of_table(name: str, table: pd.DataFrame, by: Sequence[str], columns: Mapping[str, Callable[[Any], str]]) -> Numbers:
    """Format the numbers of a table that has one row for each combination of labels.

    Args:
        name: The table's name, with which the names of its numbers begin.
        table: The table.
        by: The columns of the labels.
        columns: From the last part of a number's name to a function that returns its LaTeX for a row.

    Returns:
        LaTeX by name.
    """
    found: Numbers = {}
    for row in table.to_dict("records"):
        path = ".".join([name, *(slug(row[key]) for key in by)])
        for column, shown in columns.items():
            found[f"{path}.{column}"] = shown(row)
    return found


def plain(column: str, digits: int = 1, scale: float = 1.0) -> Callable[[Mapping[str, Any]], str]:
    """Return a function that formats a row's value in a column, without a spread."""
    return lambda row: Column(digits=digits).text([scale * row[column]])


def spread(column: str, deviation: str, digits: int = 1) -> Callable[[Mapping[str, Any]], str]:
    """Return a function that formats a row's value in a column, with the deviation of another column."""
    return lambda row: rf"{row[column]:.{digits}f}\,({row[deviation]:.{digits}f})"


def slug(label: object) -> str:
    """Return a label as part of a name: "top 0.1 %, feedback" → "top_0_1_feedback"."""
    text = f"{label:g}" if isinstance(label, float) else str(label)
    ascii_text = unicodedata.normalize("NFKD", text.replace("ε", "eps")).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "_", ascii_text.lower()).strip("_")
