"""A table that compares methods, each with its best tuning and all its seeds."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dpcomp.core.errors import ConfigError
from dpcomp.lab.results.frames import curves, summary
from dpcomp.lab.results.provenance import origins
from dpcomp.lab.sweep.plan import Outcome, Standing, configs_in, standing_of

MEASURES = (
    *("seeds", "accuracy_percent", "deviation", "payload_bytes", "compression_ratio"),
    *("uplink_bytes", "downlink_bytes", "epsilon"),
)
REFERENCE = "dense"  # the config beside a method's, or the label in its grid, that it is compared with


def standings_in(target: Path) -> tuple[Standing, ...]:
    """Return the trials and results of all configs below a folder, or of one config; of each folder REFERENCE is first.

    Raises:
        ConfigError: There is no config, or one can't be read.
    """
    configs = sorted(configs_in(target), key=lambda path: (path.parent, path.stem != REFERENCE, path))
    return tuple(standing_of(config) for config in configs)


def compare(target: Path) -> pd.DataFrame:
    """Return the `comparison` of all configs below a folder, or of one config. Raises ConfigError."""
    return comparison(standings_in(target), target)


def comparison(standings: Sequence[Standing], target: Path) -> pd.DataFrame:
    """Compare methods by the results that count: one row for each method.

    A method is a point of a config, with its best tuning. Columns: method, tuning, tried (the number of tunings that
    were tried), MEASURES, and rounds_behind: how many rounds before its own last round the REFERENCE of the method's
    grid, or else the one beside its config, reached the final accuracy of the method (mean over seeds).

    Args:
        standings: What `standings_in(target)` returned.
        target: The folder of configs, or the config; methods are named by their paths from there.

    Raises:
        ConfigError: No trial is finished.
    """
    folder = target if target.is_dir() else target.parent
    finished = [
        (standing.config.with_suffix(""), outcome)
        for standing in standings
        for outcome in standing.outcomes()
        if outcome.reports
    ]
    accuracies = {home / outcome.point.name: _mean_accuracy(outcome) for home, outcome in finished}
    in_grid = {
        home: accuracies[home / outcome.point.name]
        for home, outcome in finished
        if list(outcome.point.labels.values()) == [REFERENCE]
    }
    rows = []
    for home, outcome in finished:
        place = home / outcome.point.name
        reference = in_grid.get(home, accuracies.get(home.parent / REFERENCE))
        rows.append(
            {
                "method": place.relative_to(folder).as_posix(),
                "tuning": outcome.tuning or "none",
                "tried": outcome.tried,
                **measured(outcome.reports),
                "rounds_behind": rounds_behind(accuracies[place], reference),
            }
        )
    if not rows:
        notes = [note for standing in standings for note in standing.notes()]
        raise ConfigError("; ".join([f"{target} holds no config with a finished trial: sweep it first", *notes]))
    return pd.DataFrame(rows)


def notes(standings: Sequence[Standing]) -> list[str]:
    """Return what a reader of the comparison should know: results that do not count, warnings, code that differed."""
    lines = [note for standing in standings for note in standing.notes()]
    for standing in standings:
        said = Counter(text for report in standing.finished.values() for text in report.get("warnings", ()))
        lines += [f"{standing.results.path}: {number} of the results: {text}" for text, number in sorted(said.items())]
    counted = origins(report for standing in standings for report in standing.finished.values())
    if len(counted) > 1:
        states = ", ".join(f"{origin} ({number})" for origin, number in sorted(counted.items()))
        lines.append(f"the results that count were made by different states of the code: {states}")
    return lines


def measured(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return MEASURES of the trials of one method, a seed each.

    Args:
        reports: The reports of the trials; none is a method without a finished trial.

    Returns:
        A value for each of MEASURES; what no trial has measured is NaN:

        - `seeds`: the number of trials;
        - `accuracy_percent`: the mean of the last test accuracies, in percent;
        - `deviation`: their standard deviation over the seeds, in percentage points;
        - `payload_bytes`: the mean bytes of a client's payload;
        - `compression_ratio`: the bytes of the update as float32, divided by those of its payload;
        - `uplink_bytes`, `downlink_bytes`: the bytes of all clients in all rounds;
        - `epsilon`: the largest ε of the trials; that of a trial is the maximum over its clients. Infinite without a
          guarantee.
    """
    if not reports:
        return {name: 0 if name == "seeds" else math.nan for name in MEASURES}
    trials = summary({"": reports})
    accuracy = 100 * trials["test_accuracy"]
    means = [trials[name].mean() for name in ("payload_bytes", "compression_ratio", "uplink_bytes", "downlink_bytes")]
    epsilon = max(math.inf if pd.isna(spent) else spent for spent in trials["epsilon"])
    found = (len(trials), accuracy.mean(), accuracy.std(ddof=1), *means, epsilon)
    return dict(zip(MEASURES, found, strict=True))


def rounds_behind(accuracy: pd.Series, reference: pd.Series | None) -> float:
    """Return how many rounds before its last round the reference first reached the final accuracy of a method.

    Between evaluations it is interpolated. It is never negative, and NaN if the reference never reached that accuracy
    or there is no reference.

    Args:
        accuracy: The method's accuracy, indexed by round.
        reference: The accuracy of the method that it is compared with, indexed by round.
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


def _mean_accuracy(outcome: Outcome) -> pd.Series:
    """Return round → test accuracy, mean over seeds, where it was evaluated."""
    table = curves({"": outcome.reports})
    evaluated = table[table["test_accuracy"].notna()]
    return pd.Series(evaluated.groupby("round")["test_accuracy"].mean())
