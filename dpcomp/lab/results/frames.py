"""Reports as one table: one row for each round, or one row for each trial."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from dpcomp.lab.results.measure import ACCURACY, Measure, metric_of, others_in

TIMES = 60  # blocks of rounds whose wall times a report keeps


def curves(reports: Mapping[str, Iterable[Mapping[str, Any]]]) -> pd.DataFrame:
    """Join the rounds of all reports into one table.

    Args:
        reports: From a method's name to the reports of its seeds.

    Returns:
        One row for each round of each report, with the columns of `dpcomp.simulation.Run`, `method` (the name) and
        `seed`.
    """
    frames = [
        _table(report).assign(method=method, seed=report["seed"])
        for method, group in reports.items()
        for report in group
    ]
    return pd.concat(frames, ignore_index=True)


def _table(report: Mapping[str, Any]) -> pd.DataFrame:
    table = pd.DataFrame(report["curves"])
    if "payload_bytes" not in table:  # nobody took part in any round
        return table
    return table.assign(compression_ratio=4 * report["coordinates"] / table["payload_bytes"])


def summary(
    reports: Mapping[str, Iterable[Mapping[str, Any]]], metric: str = ACCURACY, measure: Measure = "last"
) -> pd.DataFrame:
    """Summarise each report: its metrics, its ε and its bytes.

    Args:
        reports: From a method's name to the reports of its seeds.
        metric: Which metric counts.
        measure: Of which model metrics are given.

    Returns:
        One row for each report, with the columns `method`, `seed`, `test_accuracy` or another metric that counts, those
        of the other metrics and `test_loss` (where the task has no test set there are none), `epsilon` (None
        without a guarantee), `payload_bytes`, `compression_ratio` and `top_k_overlap` (means over the rounds),
        `uplink_bytes` and `downlink_bytes` (sums over clients and rounds), and `total_ratio` (the bytes of both where
        updates and broadcasts are dense float32, divided by theirs; NaN where the report does not say how many updates
        and clients there were).

    Raises:
        ConfigError: A trial did not measure the metric that counts.
    """
    rows = []
    for method, group in reports.items():
        for report in group:
            table = pd.DataFrame(report["curves"])
            # A run without any participant has no payload.
            payload_bytes = table["payload_bytes"].mean() if "payload_bytes" in table else float("nan")
            uplink, downlink = table["uplink_bytes"].sum(), table["downlink_bytes"].sum()
            rows.append(
                {
                    "method": method,
                    "seed": report["seed"],
                    f"test_{metric}": metric_of(report, metric, measure),
                    "epsilon": report["guarantee"]["epsilon"],
                    "payload_bytes": payload_bytes,
                    "compression_ratio": 4 * report["coordinates"] / payload_bytes,
                    "uplink_bytes": uplink,
                    "downlink_bytes": downlink,
                    "total_ratio": 4 * report["coordinates"] * _vectors(report) / (uplink + downlink),
                    "top_k_overlap": table["top_k_overlap"].mean() if "top_k_overlap" in table else float("nan"),
                    **{f"test_{other}": metric_of(report, other, measure) for other in others_in(report, metric)},
                }
            )
    return pd.DataFrame(rows)


def _vectors(report: Mapping[str, Any]) -> float:
    """Return how many updates were accepted in a run, and broadcasts delivered: each client follows every broadcast."""
    config, curves = report.get("config", {}), report["curves"]
    clients = config.get("federation", config).get("clients")  # a demo's report has no [federation]
    if clients is None or "participants" not in curves:
        return float("nan")
    return sum(curves["participants"]) + clients * len(curves["round"])


def columns(table: pd.DataFrame) -> dict[str, list[float | int | str | None]]:
    """Return a table's columns as JSON types: numbers of six digits, and null for what was not measured."""
    return {
        str(column): [value if isinstance(value, str) else _rounded(value) for value in table[column]]
        for column in table
    }


def columns_of_rounds(table: pd.DataFrame) -> dict[str, list[float | int | str | None]]:
    """Return the columns of a run's table as a report keeps them, as JSON types.

    `compression_ratio` is left out, as `curves` computes it from `payload_bytes`. `seconds`, which no two runs have
    alike, are means over blocks of rounds: of single rounds in a run of TIMES rounds or less, and at most TIMES blocks.

    Args:
        table: What `Run.table` returns.
    """
    kept = table.drop(columns="compression_ratio", errors="ignore")
    if "seconds" in kept:
        blocks = np.arange(len(kept)) // math.ceil(max(len(kept), 1) / TIMES)
        means = kept.groupby(blocks)["seconds"].transform("mean")
        kept = kept.assign(seconds=[_rounded(value, 3) for value in means])
    return columns(kept)


def _rounded(value: float, digits: int = 6) -> float | int | None:
    if pd.isna(value) or math.isinf(value):  # JSON has no infinity
        return None
    return int(value) if float(value).is_integer() else float(f"{value:.{digits}g}")
