"""Tables of the trials that count: a row a trial, or a row a round."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from dpcomp.lab.results.frames import curves, summary
from dpcomp.lab.results.results_file import Report
from dpcomp.lab.sweep.plan import Outcome, outcomes


def rounds_of(config: Path) -> pd.DataFrame:
    """Return one row for each round of every trial that counts in a config's grid.

    There is a column an axis, with the point's label; it is called `grid.<axis>` where that name is taken.

    Raises:
        ConfigError: No trial is finished.
    """
    return _of_points(config, lambda outcome: curves(_named(outcome)))


def trials_of(config: Path) -> pd.DataFrame:
    """Return one row for each trial that counts in a config's grid, at its point's best tuning, with its labels.

    The metrics are those by the config's measure.

    Raises:
        ConfigError: No trial is finished.
    """

    def by_measure(outcome: Outcome) -> pd.DataFrame:
        return summary(_named(outcome), outcome.point.experiment.metric, outcome.point.experiment.measure)

    return _of_points(config, by_measure)


def trials_below(folder: Path) -> pd.DataFrame:
    """Return one row for each trial that counts of all configs below a folder.

    The column `config` is the config's path below that folder, without its ending.

    Raises:
        ConfigError: A config has no finished trial.
    """
    configs = sorted(folder.rglob("*.toml"))
    return pd.concat(
        [trials_of(config).assign(config=config.relative_to(folder).with_suffix("").as_posix()) for config in configs],
        ignore_index=True,
    )


def noise_multiplier(report: Report) -> float:
    """Return the noise multiplier of the pipeline in a trial's report; 0 if it adds no noise."""
    mechanism = report["pipeline"]["Pipeline"]["mechanism"]
    stages = mechanism["Unsafe"]["stages"] if isinstance(mechanism, dict) else mechanism
    noisy = (stage["Gaussian"]["noise_multiplier"] for stage in stages if "Gaussian" in stage)
    return next(noisy, 0.0)


def _named(outcome: Outcome) -> Mapping[str, Sequence[Mapping[str, Any]]]:
    return {outcome.point.title: outcome.reports}


def _of_points(config: Path, table: Callable[[Outcome], pd.DataFrame]) -> pd.DataFrame:
    frames = []
    for outcome in outcomes(config):
        if outcome.reports:
            rows = table(outcome)
            labels = {f"grid.{name}" if name in rows else name: text for name, text in outcome.point.labels.items()}
            frames.append(rows.assign(**labels, tuning=outcome.tuning, tried=outcome.tried))
    return pd.concat(frames, ignore_index=True)
