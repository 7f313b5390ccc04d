"""Numbers for a text: tables of results as names and what is printed: `top_k.cifar10.dense.accuracy` is 43.1 ± 0.2.

A name is the table's, then the row's labels, then the column, with dots between; of labels letters and digits stay,
and what lies between becomes an underscore. What is printed is LaTeX, for math mode.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

Numbers = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Column:
    """How a column's values over the seeds are printed: their mean, and with `spread` their standard deviation.

    show: what a value is multiplied with before it is rounded to `digits` decimals.
    """

    digits: int = 1
    scale: float = 1.0
    spread: bool = True

    def text(self, values: Sequence[float]) -> str:
        """The LaTeX; of one value, or without `spread`, the mean alone."""
        found = self.scale * np.asarray(values, dtype=np.float64)
        rounded = round(float(found.mean()), self.digits) + 0.0  # not −0.0
        mean = f"{rounded:,.{self.digits}f}".replace(",", "{,}")
        if not self.spread or len(found) < 2:
            return mean
        return rf"{mean} \pm {found.std(ddof=1):.{self.digits}f}"


ACCURACY = {
    "accuracy": ("test_accuracy", Column(scale=100)),
    "mean": ("test_accuracy", Column(scale=100, spread=False)),
    "bytes": ("payload_bytes", Column(digits=0, spread=False)),
    "ratio": ("compression_ratio", Column(digits=0, spread=False)),
    "ratio1": ("compression_ratio", Column(digits=1, spread=False)),
    "uplink_mib": ("uplink_bytes", Column(digits=2, scale=2**-20, spread=False)),
    "seeds": ("seed", Column(digits=0, spread=False)),
}


def of_trials(name: str, trials: pd.DataFrame, by: Sequence[str], reference: str | None = None) -> Numbers:
    """Numbers of a row a trial, by the labels of its point: ACCURACY, and the tuning.

    With a `reference`, a label of the last of `by`, also `gap`: points less accurate, seed by seed; and `gain`.
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
        found |= _gaps(name, trials, by, reference)
    return found


def _gaps(name: str, trials: pd.DataFrame, by: list[str], reference: str) -> Numbers:
    table: Any = trials.set_index([*by, "seed"])["test_accuracy"]
    base = table.xs(reference, level=by[-1])
    gaps = table.groupby(by, sort=False).apply(
        lambda group: (base.reindex(group.droplevel(by[-1]).index).to_numpy() - group.to_numpy()).tolist()
    )
    points = Column(scale=100)
    found: Numbers = {}
    for labels, values in gaps.items():
        path = ".".join([name, *map(slug, labels if isinstance(labels, tuple) else (labels,))])
        found[f"{path}.gap"] = points.text(values)
        found[f"{path}.gain"] = points.text([-value for value in values])
    return found


def of_table(name: str, table: pd.DataFrame, by: Sequence[str], columns: Mapping[str, Callable[[Any], str]]) -> Numbers:
    """Numbers of a row a label: each of `columns` says how the row's value there is printed."""
    found: Numbers = {}
    for row in table.to_dict("records"):
        path = ".".join([name, *(slug(row[key]) for key in by)])
        for column, shown in columns.items():
            found[f"{path}.{column}"] = shown(row)
    return found


def plain(column: str, digits: int = 1, scale: float = 1.0) -> Callable[[Mapping[str, Any]], str]:
    """A row's value as it is printed without a spread."""
    return lambda row: Column(digits=digits).text([scale * row[column]])


def spread(column: str, deviation: str, digits: int = 1) -> Callable[[Mapping[str, Any]], str]:
    """A row's value with what stands in its column of deviations."""
    return lambda row: rf"{row[column]:.{digits}f} \pm {row[deviation]:.{digits}f}"


def slug(label: object) -> str:
    """A label as part of a name: "top 0.1 %, feedback" → "top_0_1_feedback"."""
    text = f"{label:g}" if isinstance(label, float) else str(label)
    ascii_text = unicodedata.normalize("NFKD", text.replace("ε", "eps")).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "_", ascii_text.lower()).strip("_")
