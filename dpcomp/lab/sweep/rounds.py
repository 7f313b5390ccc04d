"""The rounds of all results that a config, a folder or a file of results has, for figures."""

from pathlib import Path

import pandas as pd

from dpcomp.core.errors import ConfigError
from dpcomp.lab.results.measure import ACCURACY, LOSS
from dpcomp.lab.results.read import SUFFIX, read, rounds_of
from dpcomp.lab.results.results_file import Report
from dpcomp.lab.sweep.comparison import method_name, notes, standings_in

TEST = "test_"  # before a metric, in the name of its column


def rounds_in(target: Path) -> tuple[pd.DataFrame, str, list[str]]:
    """Return the rounds of the results that count, the metric that they are compared by, and what a reader should know.

    Of configs those of each method's best tuning count, as in `comparison`; of results without a config, all. The
    metric is that of the configs, if they have the same; else the only one that was
    measured, or the accuracy.

    Args:
        target: A config, a folder of configs, a JSON-lines file of results, or a folder of such files.

    Raises:
        ConfigError: No trial is finished, or a file can't be read.
    """
    if target.suffix == SUFFIX or (target.is_dir() and next(target.rglob("*.toml"), None) is None):
        frame = read(target)
        measured = [str(name).removeprefix(TEST) for name in frame if str(name).startswith(TEST)]
        own = [name for name in measured if name != LOSS] or measured
        return frame, own[0] if len(own) == 1 else ACCURACY, []
    standings = standings_in(target)
    folder = target if target.is_dir() else target.parent
    reports: dict[str, list[Report]] = {}
    for standing in standings:
        for outcome in standing.outcomes():
            if outcome.reports:
                reports[method_name(outcome, standings, folder)] = [
                    {**report, "results": standing.config.with_suffix("").relative_to(folder).as_posix()}
                    for report in outcome.reports
                ]
    said = notes(standings)
    if not reports:
        raise ConfigError("; ".join([f"{target} holds no config with a finished trial: sweep it first", *said]))
    metrics = {standing.outcomes()[0].point.experiment.metric for standing in standings}
    return rounds_of(reports), metrics.pop() if len(metrics) == 1 else ACCURACY, said
