"""Methods side by side: of each the best tuning, over its seeds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.results import curves, summary

REFERENCE = "dense"  # the config beside a method's that it is compared with


def compare(folder: Path) -> pd.DataFrame:
    """A row a method, from all finished trials below a folder of configs.

    A method is a config; of its tunings the one with the best final accuracy at the lowest seed counts, as in the
    run. Columns: method, tuning, seeds, accuracy_percent and its standard deviation, payload_bytes, ratio, epsilon, and
    rounds_behind: how many rounds before its end the REFERENCE beside it stood where the method ends (mean over seeds).
    """
    rows, means = [], {}
    for config in sorted(folder.rglob("*.toml"), key=lambda path: (path.parent, path.stem != REFERENCE, path)):
        home = config.with_suffix("")
        tunings = _tunings(home)
        if tunings:
            best = max(tunings, key=lambda name: _last_accuracy(tunings[name][0]))
            trials = summary({best: tunings[best]})
            means[home] = _mean_accuracy(curves({best: tunings[best]}))
            rows.append(
                {
                    "method": str(config.relative_to(folder).with_suffix("")),
                    "tuning": best or "none",
                    "tried": len(tunings),
                    "seeds": len(trials),
                    "accuracy_percent": 100 * trials["test_accuracy"].mean(),
                    "deviation": 100 * trials["test_accuracy"].std(ddof=1),
                    "payload_bytes": trials["payload_bytes"].mean(),
                    "compression_ratio": trials["compression_ratio"].mean(),
                    "epsilon": trials["epsilon"].max(),
                    "rounds_behind": rounds_behind(means[home], means.get(home.parent / REFERENCE)),
                }
            )
    if not rows:
        raise ValueError(f"{folder} holds no finished trial: run its configs first, dpcomp run {folder}/….toml")
    return pd.DataFrame(rows)


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
