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
from dpcomp.lab.results.measure import ACCURACY, LOSS, Measure, metric_of, others_in
from dpcomp.lab.results.provenance import origins
from dpcomp.lab.sweep.paired import paired_difference
from dpcomp.lab.sweep.plan import Outcome, Standing, configs_in, standing_of

JUDGED = ("deviation", "difference", "half_interval")  # in the unit of the metric
COSTS = ("payload_bytes", "compression_ratio", "uplink_bytes", "downlink_bytes", "total_ratio", "epsilon")
MEASURED = ("seeds", "metric", "measure", *JUDGED, *COSTS)  # and a column of the metric, behind `measure`
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
    the final value of the method's metric (mean over seeds). `reference_of` says which method that is.

    Args:
        standings: What `standings_in(target)` returned.
        target: The folder of configs, or the config; methods are named by their paths from there, those of one config
            by their labels.

    Raises:
        ConfigError: No trial is finished.
    """
    folder = target if target.is_dir() else target.parent
    finished = [outcome for standing in standings for outcome in standing.outcomes() if outcome.reports]
    rows = []
    for outcome in finished:
        reference = reference_of(outcome, finished)
        rows.append(
            {
                "method": method_name(outcome, standings, folder),
                "tuning": outcome.tuning or "none",
                "tried": outcome.tried,
                **measured(outcome, reference),
                "rounds_behind": _rounds_behind(outcome, reference),
            }
        )
    if not rows:
        notes = [note for standing in standings for note in standing.notes()]
        raise ConfigError("; ".join([f"{target} holds no config with a finished trial: sweep it first", *notes]))
    return pd.DataFrame(rows)


def method_name(outcome: Outcome, standings: Sequence[Standing], folder: Path) -> str:
    """Return the name of a method: its labels where one config is all there is, else its path from the folder.

    Args:
        outcome: The results of the method.
        standings: All configs that are compared.
        folder: The folder of the configs.
    """
    point = outcome.point
    if len(standings) == 1 and point.name:
        return point.title
    return (point.config.with_suffix("") / point.name).relative_to(folder).as_posix()


def notes(standings: Sequence[Standing]) -> list[str]:
    """Return what a reader of the comparison should know.

    That is: results that do not count, tunings at the edge of their grid, warnings, and code that differed.
    """
    lines = [
        note for standing in standings for note in (*standing.notes(), *standing.edges(), *standing.choices_on_test())
    ]
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


def column_of(metric: str) -> str:
    """Return the column of a metric in a table: accuracies are given in percent, other metrics as they are."""
    return "accuracy_percent" if metric == ACCURACY else metric


def measured(outcome: Outcome, reference: Outcome | None) -> dict[str, Any]:
    """Return MEASURED of a point, and its metrics: of the trials of its best tuning, a seed each.

    Args:
        outcome: The results of the point; there may be no finished trial.
        reference: The results of what it is compared with; None if there are none.

    Returns:
        A value for each of MEASURED and of the metrics; what no trial has measured is NaN:

        - `seeds`: the number of trials;
        - `metric`, `measure`: which test metric of a trial counts, and of which model, as the config declares it;
        - `accuracy_percent`, or the name of another metric: the mean of these metrics; of accuracies, in percent;
        - `deviation`: their standard deviation over the seeds, in the same unit;
        - `difference`: their mean difference to the reference, paired by seed, in the same unit; NaN where the two
          have different metrics or measures, and of the reference itself;
        - `half_interval`: half the width of its 95 % interval: it is `difference` ± `half_interval`;
        - `payload_bytes`: the mean bytes of a client's payload;
        - `compression_ratio`: the bytes of the update as float32, divided by those of its payload;
        - `uplink_bytes`, `downlink_bytes`: the bytes of all clients in all rounds;
        - `total_ratio`: the bytes of uplink and downlink together where updates and broadcasts are dense float32,
          divided by theirs;
        - `epsilon`: the largest ε of the trials; that of a trial is the maximum over its clients. Infinite without a
          guarantee;
        - `test_<metric>`: the mean of each other metric of the task, but for the loss.
    """
    criterion = outcome.point.experiment.criterion
    metric, measure = criterion.metric, criterion.measure
    declared = {"metric": metric, "measure": measure}
    if not outcome.reports:
        blank = dict.fromkeys((column_of(metric), *JUDGED, *COSTS), math.nan)
        return {"seeds": 0, **declared, **blank}
    trials = summary({"": outcome.reports}, metric, measure)
    values = _scale(metric) * trials[f"test_{metric}"]
    epsilon = max(math.inf if pd.isna(spent) else spent for spent in trials["epsilon"])
    comparable = reference is not None and reference is not outcome and _declared(reference) == _declared(outcome)
    others = _values(reference) if reference is not None and comparable else {}
    judged = (values.std(ddof=1), *paired_difference(_values(outcome), others))
    return {
        "seeds": len(trials),
        **declared,
        column_of(metric): values.mean(),
        **dict(zip(JUDGED, judged, strict=True)),
        **{name: trials[name].mean() for name in COSTS if name != "epsilon"},
        "epsilon": epsilon,
        **{f"test_{name}": trials[f"test_{name}"].mean() for name in _others(outcome)},
    }


def rounds_behind(values: pd.Series, reference: pd.Series | None) -> float:
    """Return how many rounds before its last round the reference first reached the final value of a method.

    Between evaluations it is interpolated. It is never negative, and NaN if the reference never reached that value
    or there is no reference.

    Args:
        values: What is the higher the better of the method, indexed by round.
        reference: The same of the method that it is compared with, indexed by round.
    """
    if reference is None or not reference.max() >= values.iloc[-1]:
        return float("nan")
    rounds, reached = reference.index.to_numpy(dtype=float), reference.to_numpy(dtype=float)
    first = int(np.argmax(reached >= values.iloc[-1]))
    if first == 0:
        return float(rounds[-1] - rounds[0])
    return float(rounds[-1] - np.interp(values.iloc[-1], reached[first - 1 : first + 1], rounds[first - 1 : first + 1]))


def _rounds_behind(outcome: Outcome, reference: Outcome | None) -> float:
    metric = outcome.point.experiment.metric
    if reference is None or reference.point.experiment.metric != metric:
        return math.nan
    sign = -1 if outcome.point.experiment.criterion.lower_is_better else 1
    own, others = (_means_by_round(each, metric) for each in (outcome, reference))
    return math.nan if own.empty or others.empty else rounds_behind(sign * own, sign * others)


def _declared(outcome: Outcome) -> tuple[str, Measure]:
    return outcome.point.experiment.metric, outcome.point.experiment.measure


def _scale(metric: str) -> float:
    return 100 if metric == ACCURACY else 1


def _others(outcome: Outcome) -> list[str]:
    metric = outcome.point.experiment.metric
    names = [name for report in outcome.reports for name in others_in(report, metric) if name != LOSS]
    return list(dict.fromkeys(names))


def _values(outcome: Outcome) -> dict[int, float]:
    """Return seed → the test metric that counts, in the unit of the table."""
    metric, measure = _declared(outcome)
    return {report["seed"]: _scale(metric) * metric_of(report, metric, measure) for report in outcome.reports}


def _means_by_round(outcome: Outcome, metric: str) -> pd.Series:
    """Return round → test metric, mean over seeds, where it was evaluated."""
    table = curves({"": outcome.reports})
    if f"test_{metric}" not in table:
        return pd.Series(dtype=float)
    evaluated = table[table[f"test_{metric}"].notna()]
    return pd.Series(evaluated.groupby("round")[f"test_{metric}"].mean())
