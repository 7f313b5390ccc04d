"""Methods side by side: of each the best tuning, over its seeds."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.results import summary


def compare(folder: Path) -> pd.DataFrame:
    """A row a method, from all finished trials below a folder of configs.

    A method is a config; of its tunings the one with the best final accuracy at the lowest seed counts, as in the
    run. Columns: method, tuning, seeds, accuracy_percent and its standard deviation, payload_bytes, ratio, epsilon.
    """
    rows = []
    for config in sorted(folder.rglob("*.toml")):
        tunings = _tunings(config.with_suffix(""))
        if tunings:
            best = max(tunings, key=lambda name: _last_accuracy(tunings[name][0]))
            trials = summary({best: tunings[best]})
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
                }
            )
    if not rows:
        raise ValueError(f"{folder} holds no finished trial: run its configs first, dpcomp run {folder}/….toml")
    return pd.DataFrame(rows)


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
