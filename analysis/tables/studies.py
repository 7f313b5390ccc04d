"""Tables of the studies' results.

A study's results lie where those of a config of its name would: `source` is that config's path, without the ending.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from analysis.cost.break_even import costs_by_device, measured_costs
from analysis.tables.noise_losses import at_equal_density, at_equal_energy, table_of
from dpcomp.core.errors import ConfigError
from dpcomp.lab.results.results_file import Report, results_of


def study_reports(source: Path) -> Sequence[Report]:
    """Return all results of a study.

    Raises:
        ConfigError: There is none.
    """
    results = results_of(source)
    reports = results.read()
    if not reports:
        raise ConfigError(f"{results.path} holds no result: run python -m experiments study {source.name} first")
    return reports


def losses_of(source: Path) -> pd.DataFrame:
    """Return one row for each setting of the scrambling study: its loss, measured and predicted. Raises ConfigError."""
    reports = study_reports(source)
    return at_equal_density(table_of(reports, "payloads"), table_of(reports, "supports"))


def energies_of(source: Path) -> pd.DataFrame:
    """Return the scrambling study's bytes for each order, noise and share of energy. Raises ConfigError."""
    return at_equal_energy(table_of(study_reports(source), "energies"))


def costs_of(source: Path) -> pd.DataFrame:
    """Compute the bandwidth below which, and the energy a bit above which, each codec of the cost study pays.

    Args:
        source: The study's TOML file.

    Returns:
        A row for each update, device and codec; the columns are those of `costs_by_device`.

    Raises:
        ConfigError: The study has no results.
    """
    return costs_by_device(measured_costs(study_reports(source)))


def audits_of(source: Path) -> pd.DataFrame:
    """Return a row a case of the study of audits, sorted by kind and by what was shown. Raises ConfigError."""
    rows = [report["config"] | report for report in study_reports(source)]
    return pd.DataFrame(rows).sort_values(["kind", "shown_epsilon"], ignore_index=True)
