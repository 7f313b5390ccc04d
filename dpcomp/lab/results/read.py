"""All results below a folder as one table, whoever made them; no config is needed."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from dpcomp.core.errors import ConfigError
from dpcomp.lab.config.labels import label
from dpcomp.lab.results.frames import curves
from dpcomp.lab.results.results_file import Report, ResultsFile

SUFFIX = ".jsonl"
SEED = re.compile(r"[/-]seed-\d+$")  # the end of a trial's name
NO_SETTINGS = ("task", "seeds", "tune", "epsilon", "delta")  # of a config, which tell no trials of it apart
TOTALS = {  # columns that are added: sums from the first round on
    "uplink_total": ("uplink_bytes",),
    "downlink_total": ("downlink_bytes",),
    "total_bytes": ("uplink_bytes", "downlink_bytes"),
}


def read(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read results as a table with one row for each round of each trial.

    `frame = results.read("results")` reads all files below that folder. All trials are read: those that do not count
    any more for a config, and those of every tuning, too.

    Args:
        path: A JSON-lines file of results, or a folder: all such files below it.

    Returns:
        The columns of `dpcomp.simulation.Run`, and

        - `method`: the file's path from there, without its ending, and the trial's name without its seed;
        - `results`, `trial`, `seed`, `task`: which trial it is;
        - `uplink_total`, `downlink_total`, `total_bytes`: the bytes of all clients up to that round;
        - `epsilon`: ε so far where a result has it, else ε of the whole trial in its last row; NaN elsewhere;
        - a column for each setting, named by its path in a config, such as `federation.learning_rate`.

    Raises:
        ConfigError: Nothing is there, or a file is damaged or holds something else than trials.
    """
    place = Path(path)
    reports: dict[str, list[Report]] = {}
    for file in _files(place):
        named = file.with_suffix("").relative_to(place if place.is_dir() else place.parent).as_posix()
        for report in ResultsFile(path=file).read():
            if "curves" in report:  # else it is a study's
                method = SEED.sub("", f"{named}/{report['trial']}")
                reports.setdefault(method, []).append({**report, "results": named})
    if not reports:
        raise ConfigError(f"{place} holds no result of a trial, *{SUFFIX}: sweep a config first, or give another path")
    return rounds_of(reports)


def rounds_of(reports: Mapping[str, Sequence[Report]]) -> pd.DataFrame:
    """Join the rounds of all reports into one table, with the columns that `read` describes.

    Args:
        reports: From a method's name to the reports of its trials.
    """
    return pd.concat(
        [_rounds(method, report) for method, group in reports.items() for report in group], ignore_index=True
    )


def _rounds(method: str, report: Report) -> pd.DataFrame:
    table = curves({method: [report]})
    config = report.get("config", {})
    columns: dict[str, Any] = {"results": report.get("results", ""), "trial": report["trial"]}
    columns["task"] = label(config.get("task", ""))
    for name, parts in TOTALS.items():
        if all(part in table for part in parts):
            columns[name] = table[list(parts)].sum(axis=1).cumsum()
    if "epsilon" not in table:
        spent = report["guarantee"]["epsilon"]
        columns["epsilon"] = [float("nan")] * (len(table) - 1) + [float("nan") if spent is None else spent]
    for name in config.keys() - {*NO_SETTINGS, *table}:
        columns |= dict(_settings(config[name], name))
    return table.assign(**columns)


def _settings(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield the path and the value of each setting; a call in a list is found by its name, as in a grid."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _settings(item, f"{path}.{key}")
    elif isinstance(value, list) and all(isinstance(item, dict) for item in value):
        for item in value:
            yield from _settings(item, path)
    elif value is not None:
        yield path, value if isinstance(value, (bool, int, float, str)) else label(value)


def _files(place: Path) -> list[Path]:
    """Return the files of results below a folder, also those whose trials still run."""
    if not place.is_dir():
        return [place] if place.exists() or place.with_suffix(".running").exists() else []
    running = (folder.with_suffix(SUFFIX) for folder in place.rglob("*.running"))
    return sorted({*place.rglob(f"*{SUFFIX}"), *running})
