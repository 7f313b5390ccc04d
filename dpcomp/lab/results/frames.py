"""Reports as one table: one row for each round, or one row for each trial."""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd


def curves(reports: Mapping[str, Iterable[Mapping[str, Any]]]) -> pd.DataFrame:
    """Join the rounds of all reports into one table.

    Args:
        reports: From a method's name to the reports of its seeds.

    Returns:
        One row for each round of each report, with the columns of `dpcomp.simulation.Run`, `method` (the name) and
        `seed`.
    """
    frames = [
        pd.DataFrame(report["curves"]).assign(method=method, seed=report["seed"])
        for method, group in reports.items()
        for report in group
    ]
    return pd.concat(frames, ignore_index=True)


def summary(reports: Mapping[str, Iterable[Mapping[str, Any]]]) -> pd.DataFrame:
    """Summarise each report: its final accuracy, its ε and its bytes.

    Args:
        reports: From a method's name to the reports of its seeds.

    Returns:
        One row for each report, with the columns `method`, `seed`, `test_accuracy` (of the last evaluation), `epsilon`
        (None without a guarantee), `payload_bytes`, `compression_ratio` and `top_k_overlap` (means over the rounds),
        `uplink_bytes` and `downlink_bytes` (sums over clients and rounds).
    """
    rows = []
    for method, group in reports.items():
        for report in group:
            table = pd.DataFrame(report["curves"])
            # A run without any participant has no payload.
            payload_bytes = table["payload_bytes"].mean() if "payload_bytes" in table else float("nan")
            rows.append(
                {
                    "method": method,
                    "seed": report["seed"],
                    "test_accuracy": table["test_accuracy"].dropna().iloc[-1],
                    "epsilon": report["guarantee"]["epsilon"],
                    "payload_bytes": payload_bytes,
                    "compression_ratio": 4 * report["coordinates"] / payload_bytes,
                    "uplink_bytes": table["uplink_bytes"].sum(),
                    "downlink_bytes": table["downlink_bytes"].sum(),
                    "top_k_overlap": table["top_k_overlap"].mean() if "top_k_overlap" in table else float("nan"),
                }
            )
    return pd.DataFrame(rows)


def columns(table: pd.DataFrame) -> dict[str, list[float | int | str | None]]:
    """Return a table's columns as JSON types: six digits, and null for what was not measured."""
    return {
        column: [value if isinstance(value, str) else _rounded(value) for value in table[column]] for column in table
    }


def _rounded(value: float) -> float | int | None:
    if pd.isna(value):
        return None
    return int(value) if float(value).is_integer() else float(f"{value:.6g}")
