"""The rounds of all results that a config, a folder or a file of results has, for figures."""

from pathlib import Path

import pandas as pd

from dpcomp.core.errors import ConfigError
from dpcomp.lab.results.read import SUFFIX, read, rounds_of
from dpcomp.lab.results.results_file import Report
from dpcomp.lab.sweep.comparison import notes, standings_in


def rounds_in(target: Path) -> tuple[pd.DataFrame, list[str]]:
    """Return the rounds of the results that count, and what a reader should know of them.

    Of configs those of each method's best tuning count, as in `comparison`; of results without a config, all.

    Args:
        target: A config, a folder of configs, a JSON-lines file of results, or a folder of such files.

    Raises:
        ConfigError: No trial is finished, or a file can't be read.
    """
    if target.suffix == SUFFIX or (target.is_dir() and next(target.rglob("*.toml"), None) is None):
        return read(target), []
    standings = standings_in(target)
    folder = target if target.is_dir() else target.parent
    reports: dict[str, list[Report]] = {}
    for standing in standings:
        for outcome in standing.outcomes():
            if outcome.reports:
                named = (outcome.point.config.with_suffix("") / outcome.point.name).relative_to(folder).as_posix()
                alone = len(standings) == 1 and outcome.point.name
                reports[outcome.point.title if alone else named] = [
                    {**report, "results": standing.config.with_suffix("").relative_to(folder).as_posix()}
                    for report in outcome.reports
                ]
    said = notes(standings)
    if not reports:
        raise ConfigError("; ".join([f"{target} holds no config with a finished trial: sweep it first", *said]))
    return rounds_of(reports), said
