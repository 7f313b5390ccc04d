"""A table that compares methods, each with its best tuning and all its seeds."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dpcomp.core.errors import ConfigError
from dpcomp.lab.results.frames import curves, summary
from dpcomp.lab.results.measure import accuracy_of
from dpcomp.lab.results.provenance import origins
from dpcomp.lab.sweep.paired import paired_difference
from dpcomp.lab.sweep.plan import Outcome, Standing, configs_in, standing_of

MEASURED = (
    *("seeds", "measure", "accuracy_percent", "deviation", "difference", "half_interval"),
    *("payload_bytes", "compression_ratio", "uplink_bytes", "downlink_bytes", "total_ratio", "epsilon"),
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
    were tried), MEASURED, and rounds_behind: how many rounds before its own last round the method's reference reached
    the final accuracy of the method (mean over seeds). `reference_of` says which method that is.

    Args:
        standings: What `standings_in(target)` returned.
        target: The folder of configs, or the config; methods are named by their paths from there.

    Raises:
        ConfigError: No trial is finished.
    """
    folder = target if target.is_dir() else target.parent
    finished = [outcome for standing in standings for outcome in standing.outcomes() if outcome.reports]
    rows = []
    for outcome in finished:
        reference = reference_of(outcome, finished)
        place = outcome.point.config.with_suffix("") / outcome.point.name
        rows.append(
            {
                "method": place.relative_to(folder).as_posix(),
                "tuning": outcome.tuning or "none",
                "tried": outcome.tried,
                **measured(outcome, reference),
                "rounds_behind": rounds_behind(
                    _mean_accuracy(outcome), None if reference is None else _mean_accuracy(reference)
                ),
            }
        )
    if not rows:
        notes = [note for standing in standings for note in standing.notes()]
        raise ConfigError("; ".join([f"{target} holds no config with a finished trial: sweep it first", *notes]))
    return pd.DataFrame(rows)


def notes(standings: Sequence[Standing]) -> list[str]:
    """Return what a reader of the comparison should know.

    That is: results that do not count, tunings at the edge of their grid, warnings, and code that differed.
    """
    lines = [note for standing in standings for note in (*standing.notes(), *standing.edges())]
    for standing in standings:
        said = Counter(text for report in standing.finished.values() for text in report.get("warnings", ()))
        lines += [f"{standing.results.path}: {number} of the results: {text}" for text, number in sorted(said.items())]
    counted = origins(report for standing in standings for report in standing.finished.values())
    if len(counted) > 1:
        states = ", ".join(f"{origin} ({number})" for origin, number in sorted(counted.items()))
        lines.append(f"the results that count were made by different states of the code: {states}")
    return lines


def reference_of(outcome: Outcome, outcomes: Sequence[Outcome]) -> Outcome | None:
    """Return what a point is compared with; None if there is nothing, or nothing of it is finished.

    That is the point of its grid that has the label REFERENCE on one axis and the same labels as it on the others; in a
    grid without one, the config REFERENCE beside its own. A point with that label is its own reference.

    Args:
        outcome: The results of the point.
        outcomes: The results among which the reference is looked for.
    """
    labels, config = outcome.point.labels, outcome.point.config
    own = (labels,) if REFERENCE in labels.values() else tuple({**labels, axis: REFERENCE} for axis in labels)
    beside = config.with_name(f"{REFERENCE}.toml")
    for where, wanted in (*((config, names) for names in own), (beside, {})):
        for found in outcomes:
            if found.reports and found.point.config == where and found.point.labels == wanted:
                return found
    return None


def measured(outcome: Outcome, reference: Outcome | None) -> dict[str, Any]:
    """Return MEASURED of a point: of the trials of its best tuning, a seed each.

    Args:
        outcome: The results of the point; there may be no finished trial.
        reference: The results of what it is compared with; None if there are none.

    Returns:
        A value for each of MEASURED; what no trial has measured is NaN:

        - `seeds`: the number of trials;
        - `measure`: which test accuracy of a trial counts, as the config declares it;
        - `accuracy_percent`: the mean of these accuracies, in percent;
        - `deviation`: their standard deviation over the seeds, in percentage points;
        - `difference`: their mean difference to the reference, paired by seed, in percentage points; NaN where the two
          have different measures, and of the reference itself;
        - `half_interval`: half the width of its 95 % interval: it is `difference` ± `half_interval`;
        - `payload_bytes`: the mean bytes of a client's payload;
        - `compression_ratio`: the bytes of the update as float32, divided by those of its payload;
        - `uplink_bytes`, `downlink_bytes`: the bytes of all clients in all rounds;
        - `total_ratio`: the bytes of uplink and downlink together where updates and broadcasts are dense float32,
          divided by theirs;
        - `epsilon`: the largest ε of the trials; that of a trial is the maximum over its clients. Infinite without a
          guarantee.
    """
    measure = outcome.point.experiment.measure
    if not outcome.reports:
        return {name: {"seeds": 0, "measure": measure}.get(name, math.nan) for name in MEASURED}
    trials = summary({"": outcome.reports}, measure)
    accuracy = 100 * trials["test_accuracy"]
    means = [
        trials[name].mean()
        for name in ("payload_bytes", "compression_ratio", "uplink_bytes", "downlink_bytes", "total_ratio")
    ]
    epsilon = max(math.inf if pd.isna(spent) else spent for spent in trials["epsilon"])
    comparable = reference is not None and reference is not outcome and reference.point.experiment.measure == measure
    others = _accuracies(reference) if reference is not None and comparable else {}
    difference = paired_difference(_accuracies(outcome), others)
    found = (len(trials), measure, accuracy.mean(), accuracy.std(ddof=1), *difference, *means, epsilon)
    return dict(zip(MEASURED, found, strict=True))


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


def _accuracies(outcome: Outcome) -> dict[int, float]:
    """Return seed → the test accuracy that counts, in percent."""
    measure = outcome.point.experiment.measure
    return {report["seed"]: 100 * accuracy_of(report, measure) for report in outcome.reports}


def _mean_accuracy(outcome: Outcome) -> pd.Series:
    """Return round → test accuracy, mean over seeds, where it was evaluated."""
    table = curves({"": outcome.reports})
    evaluated = table[table["test_accuracy"].notna()]
    return pd.Series(evaluated.groupby("round")["test_accuracy"].mean())
