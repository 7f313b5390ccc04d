"""Reports as one tidy frame: a row a round, or a row a trial."""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd


def curves(reports: Mapping[str, Iterable[Mapping[str, Any]]]) -> pd.DataFrame:
    """Every round of every report; `method` is the mapping's key, `seed` the report's."""
    frames = [
        pd.DataFrame(report["curves"]).assign(method=method, seed=report["seed"])
        for method, group in reports.items()
        for report in group
    ]
    return pd.concat(frames, ignore_index=True)


def summary(reports: Mapping[str, Iterable[Mapping[str, Any]]]) -> pd.DataFrame:
    """A row a trial: what it ended with, and what it cost."""
    rows = []
    for method, group in reports.items():
        for report in group:
            table = pd.DataFrame(report["curves"])
            rows.append(
                {
                    "method": method,
                    "seed": report["seed"],
                    "test_accuracy": table["test_accuracy"].dropna().iloc[-1],
                    "epsilon": report["guarantee"]["epsilon"],
                    "payload_bytes": table["payload_bytes"].mean(),
                    "compression_ratio": 4 * report["coordinates"] / table["payload_bytes"].mean(),
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
