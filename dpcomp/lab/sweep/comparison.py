"""Methods side by side: of each the best tuning, over its seeds."""

import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dpcomp.lab.results.frames import curves, summary

MEASURES = (
    *("seeds", "accuracy_percent", "deviation", "payload_bytes", "compression_ratio"),
    *("uplink_bytes", "downlink_bytes", "epsilon"),
)
REFERENCE = "dense"  # the config beside a method's that it is compared with


def compare(folder: Path) -> pd.DataFrame:
    """A row a method, from all finished trials below a folder of configs.

    A method is a config, or a point of its grid; of its tunings the one with the best final accuracy at the lowest seed
    counts, as in the run. Columns: method, tuning, tried, MEASURES, and
    rounds_behind: how many rounds before its end the REFERENCE beside it stood where the method ends (mean over seeds).
    """
    rows, means = [], {}
    for config in sorted(folder.rglob("*.toml"), key=lambda path: (path.parent, path.stem != REFERENCE, path)):
        home = config.with_suffix("")
        for point in _points(config, home):
            tunings = _tunings(point)
            if tunings:
                best = max(tunings, key=lambda name: _last_accuracy(tunings[name][0]))
                means[point] = _mean_accuracy(curves({best: tunings[best]}))
                rows.append(
                    {
                        "method": str(point.relative_to(folder)),
                        "tuning": best or "none",
                        "tried": len(tunings),
                        **measured(tunings[best]),
                        "rounds_behind": rounds_behind(means[point], means.get(home.parent / REFERENCE)),
                    }
                )
    if not rows:
        raise ValueError(f"{folder} holds no finished trial: run its configs first, dpcomp sweep {folder}")
    return pd.DataFrame(rows)


def measured(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """MEASURES of the trials of one method, a seed each: means, and the accuracy's standard deviation.

    Bytes are those of one payload, and of all clients in all rounds. Without a guarantee epsilon is infinite; what no
    trial has measured is NaN.
    """
    if not reports:
        return {name: 0 if name == "seeds" else math.nan for name in MEASURES}
    trials = summary({"": reports})
    accuracy = 100 * trials["test_accuracy"]
    means = [trials[name].mean() for name in ("payload_bytes", "compression_ratio", "uplink_bytes", "downlink_bytes")]
    epsilon = max(math.inf if pd.isna(spent) else spent for spent in trials["epsilon"])
    found = (len(trials), accuracy.mean(), accuracy.std(ddof=1), *means, epsilon)
    return dict(zip(MEASURES, found, strict=True))


def _mean_accuracy(table: pd.DataFrame) -> pd.Series:
    """Round → test accuracy, mean over seeds, where it was evaluated."""
    evaluated = table[table["test_accuracy"].notna()]
    return pd.Series(evaluated.groupby("round")["test_accuracy"].mean())


def rounds_behind(accuracy: pd.Series, reference: pd.Series | None) -> float:
    """How long before its last round the reference's accuracy (by round) first reached this one's last value.

    Between evaluations it is interpolated; negative never, NaN if it was never reached or there is no reference.
    """
    if reference is None or reference.max() < accuracy.iloc[-1]:
        return float("nan")
    rounds, reached = reference.index.to_numpy(dtype=float), reference.to_numpy(dtype=float)
    first = int(np.argmax(reached >= accuracy.iloc[-1]))
    if first == 0:
        return float(rounds[-1] - rounds[0])
    return float(
        rounds[-1] - np.interp(accuracy.iloc[-1], reached[first - 1 : first + 1], rounds[first - 1 : first + 1])
    )


def _points(config: Path, home: Path) -> list[Path]:
    """Where the trials of each point of a config lie: without a grid it is one point."""
    if "grid" not in tomllib.loads(config.read_text(encoding="utf-8")):
        return [home]
    return sorted({home / mark.relative_to(home).parts[0] for mark in home.glob("*/**/seed-*/DONE")})


def _tunings(home: Path) -> dict[str, list[dict[str, Any]]]:
    """Tuning → its reports, by seed."""
    found: dict[str, list[dict[str, Any]]] = {}
    for mark in sorted(home.rglob("DONE")):
        report = json.loads((mark.parent / "report.json").read_text(encoding="utf-8"))
        tuning = mark.parent.parent.relative_to(home)
        found.setdefault("" if tuning == Path(".") else str(tuning), []).append(report)
    return {name: sorted(reports, key=lambda report: report["seed"]) for name, reports in found.items()}


def _last_accuracy(report: dict[str, Any]) -> float:
    return report["curves"]["test_accuracy"][-1]
