"""Tables of the benchmark: a row a method, and what is printed of them."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from rich.table import Table

from dpcomp.lab.federated_benchmark.outcome import COUNTS, Outcome
from dpcomp.lab.federated_benchmark.setting import Setting
from dpcomp.lab.results.frames import summary
from dpcomp.lab.results.measure import metric_of
from dpcomp.lab.sweep.paired import paired_difference


def frame_of(outcomes: Sequence[Outcome], reference: str) -> pd.DataFrame:
    """Return a row for each method.

    Args:
        outcomes: What methods reached.
        reference: The name of the one that the others are compared with; without it there is no difference.

    Returns:
        The columns `method`, `ours`, `source`, `rate`, `tried`, `seeds`, `accuracy` (percent, of the average of the
        last models, mean over the seeds), `deviation` (over the seeds), `difference` (points, paired by seed; NaN of
        the reference), `half_width` (of its 95 % interval), `uplink` and `downlink` (bytes of one client in one round,
        mean over all), `dense_bytes` (of one vector in float32) and `epsilon` (the largest of the trials).
    """
    by_name = {outcome.method.name: _accuracies(outcome) for outcome in outcomes}
    rows = []
    for outcome in outcomes:
        trials = summary({"": outcome.reports}, COUNTS.metric, COUNTS.measure)
        name, config = outcome.method.name, outcome.reports[0]["config"]["federation"]
        accuracy, messages = 100 * trials["test_accuracy"], config["clients"] * config["rounds"]
        others = by_name.get(reference, {}) if name != reference else {}
        difference, half_width = paired_difference(by_name[name], others)
        rows.append(
            {
                "method": name,
                "ours": outcome.method.ours,
                "source": outcome.method.source,
                "rate": outcome.rate,
                "tried": outcome.tried,
                "seeds": len(trials),
                "accuracy": accuracy.mean(),
                "deviation": accuracy.std(ddof=1),
                "difference": difference,
                "half_width": half_width,
                "uplink": trials["uplink_bytes"].mean() / messages,
                "downlink": trials["downlink_bytes"].mean() / messages,
                "dense_bytes": 4 * outcome.reports[0]["coordinates"],
                "epsilon": trials["epsilon"].max(),
            }
        )
    return pd.DataFrame(rows)


def printed_table(frame: pd.DataFrame, setting: Setting) -> Table:
    """Return the table of a frame.

    Args:
        frame: Of `frame_of`.
        setting: The federation, for the title.
    """
    table = Table(
        title=f"{setting.task}, d = {setting.dimensions:,}, {setting.clients} clients, {setting.rounds} rounds, "
        f"ε ≤ {setting.epsilon:g} at δ = {setting.delta:g} for an example, noise at the clients"
    )
    table.add_column("method")
    for column in ("accuracy", "to dense", "bytes up", "bytes down", "up", "up + down", "rate", "tried"):
        table.add_column(column, justify="right")
    for row in frame.to_dict("records"):
        table.add_row(
            f"{row['method']} *" if row["ours"] else row["method"],
            *(accuracy_text(row), difference_text(row)),
            *(f"{row[way]:,.0f}" for way in ("uplink", "downlink")),
            *(f"{ratio:,.3g} ×" if ratio < 1000 else f"{ratio:,.0f} ×" for ratio in ratios(row)),
            *(f"{row['rate']:g}", str(row["tried"])),
        )
    return table


def ratios(row: Any) -> tuple[float, float]:
    """Return how many times smaller than dense float32 a method's uplink is, and its traffic both ways."""
    return row["dense_bytes"] / row["uplink"], 2 * row["dense_bytes"] / (row["uplink"] + row["downlink"])


def accuracy_text(row: Any) -> str:
    """Return the accuracy in percent, with its deviation over the seeds in parentheses."""
    return f"{row['accuracy']:.1f}" + ("" if pd.isna(row["deviation"]) else f" ({row['deviation']:.1f})")


def difference_text(row: Any) -> str:
    """Return the difference to the reference in points, with its 95 % interval; nothing of the reference itself."""
    if pd.isna(row["difference"]):
        return ""
    return f"{row['difference']:+.1f}" + ("" if pd.isna(row["half_width"]) else f" ± {row['half_width']:.1f}")


def _accuracies(outcome: Outcome) -> dict[int, float]:
    """Return seed → test accuracy, in percent."""
    return {report["seed"]: 100 * metric_of(report, COUNTS.metric, COUNTS.measure) for report in outcome.reports}
