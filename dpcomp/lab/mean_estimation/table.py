"""Tables of the benchmark: a row a result, and what is printed of them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table
from scipy.stats import t as student

from dpcomp.lab.mean_estimation.method import gaussian_error
from dpcomp.lab.mean_estimation.methods.gaussian import GaussianFloat32
from dpcomp.lab.mean_estimation.poisson_private import poisson_private_bits
from dpcomp.lab.mean_estimation.setting import Setting
from dpcomp.lab.results.results_file import Report

PPR = "PPR (bound)"
WHO = {"nobody": "nobody", "server": "the server"}


def frame_of(reports: Iterable[Report]) -> pd.DataFrame:
    """Return a row for each result, and for PPR, which is computed, one for each task under a trusted server.

    Args:
        reports: Lines of the results.

    Returns:
        The columns `clients`, `dimensions`, `epsilon`, `delta`, `inputs`, `trust`, `family`, `method`, `payload_bytes`,
        `bits` (a coordinate), `error`, `expected_error`, `ratio` (to the error of the Gaussian mechanism in float32: of
        the same rounds where a method is paired, else in closed form), `half_width` (of its 95 % interval), `unbiased`
        and `computed`.
    """
    rows = []
    for report in reports:
        config = report["config"]
        setting = Setting(**{name: config[name] for name in ("clients", "dimensions", "epsilon", "delta")})
        reference = GaussianFloat32(trust=report["trust"])
        scale = np.mean(report["reference_errors"]) if report["paired"] else gaussian_error(reference.plan(setting))
        ratios = np.array(report["errors"]) / scale
        beside = np.array(report["reference_errors"]) / scale if report["paired"] else np.ones(len(ratios))
        task = {name: config[name] for name in ("clients", "dimensions", "epsilon", "delta", "inputs")}
        rows.append(
            {
                **task,
                "trust": report["trust"],
                "family": report["family"],
                "method": report["name"],
                "payload_bytes": report["payload_bytes"],
                "bits": 8 * report["payload_bytes"] / config["dimensions"],
                "error": float(np.mean(report["errors"])),
                "expected_error": report["expected_error"],
                "ratio": ratios.mean(),
                "half_width": _half_width(ratios - ratios.mean() * beside),
                "unbiased": report["unbiased"],
                "computed": False,
            }
        )
        if report["trust"] == "server" and report["family"] == reference.family:
            bits = poisson_private_bits(reference.plan(setting))
            computed = {"family": PPR, "method": PPR, "payload_bytes": bits / 8, "bits": bits / config["dimensions"]}
            rows.append(rows[-1] | computed | {"computed": True})
    return pd.DataFrame(rows)


def printed_table(frame: pd.DataFrame) -> Table:
    """Return the table of a frame of one task and one kind of vectors: a row a method, a column an ε."""
    part: Any = frame
    epsilons, first = sorted(set(part["epsilon"])), part.iloc[0]
    table = Table(
        title=f"‖estimate − mean‖² ÷ that of the Gaussian mechanism in float32; n = {first['clients']}, "
        f"d = {first['dimensions']}, δ = {first['delta']:g}, {first['inputs']}"
    )
    for column in ("trusts", "method"):
        table.add_column(column)
    for column in ("bytes", "bits a coord.", *(f"ε = {epsilon:g}" for epsilon in epsilons)):
        table.add_column(column, justify="right")
    for (trust, method), rows in part.groupby(["trust", "method"], sort=False):
        of_epsilon = {row["epsilon"]: row for row in rows.to_dict("records")}
        table.add_row(
            WHO[trust],
            method if all(rows["unbiased"]) else f"{method} *",
            _span(list(rows["payload_bytes"])),
            _span(list(rows["bits"])),
            *(_ratio(of_epsilon[epsilon]) if epsilon in of_epsilon else "" for epsilon in epsilons),
        )
    return table


def errors_of_gaussian(frame: pd.DataFrame) -> Sequence[str]:
    """Return a line for each trust: the errors that the table's ratios are of, by ε, in closed form."""
    part: Any = frame[frame["method"] == GaussianFloat32(trust="server").name]
    lines = []
    for trust, rows in part.groupby("trust", sort=False):
        errors = [f"{row['expected_error']:.3g} at ε = {row['epsilon']:g}" for row in rows.to_dict("records")]
        lines.append(f"Gaussian, float32, trusting {WHO[trust]}: {', '.join(errors)}")
    return lines


def _ratio(row: Mapping[str, Any]) -> str:
    if row["computed"]:
        return "1, exactly"
    return f"{row['ratio']:.3g}" + (f" ± {row['half_width']:.1g}" if row["half_width"] >= 5e-4 else "")


def _span(sizes: Sequence[float]) -> str:
    low, high = (f"{size:,.0f}" if size >= 100 else f"{size:.3g}" for size in (min(sizes), max(sizes)))
    return low if max(sizes) < 1.05 * min(sizes) else f"{low}–{high}"


def _half_width(differences: np.ndarray) -> float:
    count = len(differences)
    return float(student.ppf(0.975, count - 1) * differences.std(ddof=1) / np.sqrt(count)) if count > 1 else 0.0
