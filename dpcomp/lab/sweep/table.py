"""The table over a grid and the figures that a sweep writes beside its results; and the text of printed tables."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from dpcomp.core.storage import write_whole
from dpcomp.lab.figures import scrambling, training
from dpcomp.lab.results.frames import curves
from dpcomp.lab.results.measure import ACCURACY
from dpcomp.lab.sweep.comparison import JUDGED, MEASURED, column_of, measured, reference_of
from dpcomp.lab.sweep.plan import Outcome, Standing
from dpcomp.privacy.guarantee import rounded_up

MOST_LINES = 10  # as many colours as the palette has that everyone can tell apart
COLUMNS = ("config", "tuning", "tried", *MEASURED, "trials")


def table(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """Return one row for each point: its label on each axis, its best tuning, and what that tuning measured.

    The other columns are `tuning`, `tried` (the number of tunings that were tried), what `measured` returns, and
    `trials`. A point is
    compared with that one of these outcomes which `reference_of` gives.
    An axis that has the name of another column is called `grid.<name>`. `trials` is what the names begin with, before
    the seed; it is empty where nothing is finished.
    """
    rows = []
    for outcome in outcomes:
        trials = outcome.trials if outcome.reports else ""
        about = measured(outcome, reference_of(outcome, outcomes))
        taken = {*COLUMNS, *about}
        labels = {f"grid.{name}" if name in taken else name: text for name, text in outcome.point.labels.items()}
        rows.append({**labels, "tuning": outcome.tuning, "tried": outcome.tried, **about, "trials": trials})
    return pd.DataFrame(rows)


def write(standing: Standing) -> None:
    """Write a config's table beside its results, as `<config>.csv`, and its figures, of what is finished."""
    outcomes = standing.outcomes()
    write_whole(standing.results.path.with_suffix(".csv"), table(outcomes).to_csv(index=False).encode())
    reports = {found.point.title: found.reports for found in outcomes if found.reports}
    write_figures(standing.results.path, reports, outcomes[0].point.experiment.metric)


def write_figures(results: Path, reports: Mapping[str, Sequence[Mapping[str, Any]]], metric: str = ACCURACY) -> None:
    """Draw curves by title, as `<config>.training.png` and `<config>.scrambling.png`.

    Args:
        results: The file of the results, which the figures lie beside.
        reports: Title → the reports of its seeds; of more than MOST_LINES titles nothing is drawn, for nobody could
            tell them apart.
        metric: Which test metric is drawn. Where nothing was tested, no figure of it is drawn.
    """
    if not 0 < len(reports) <= MOST_LINES:
        return
    rounds = curves(reports)
    if f"test_{metric}" in rounds:
        _save(training.draw(rounds, metric), results.with_suffix(".training.png"))
    fractions = {_probed_fraction(facts) for group in reports.values() for facts in group}
    fraction = fractions.pop()
    if fraction is not None and not fractions:
        _save(scrambling.draw(rounds, fraction), results.with_suffix(".scrambling.png"))


def printed(table: pd.DataFrame, decimals: int | None = 2) -> str:
    """Return a table as text; ε is rounded up, so that the printed number is never smaller than the proven one.

    Args:
        table: Its column `epsilon`, if it has one, holds ε; NaN and infinity stand for no guarantee.
        decimals: The number of decimals of all other columns; None for as many as pandas gives.
    """
    shown = table.copy()
    if "epsilon" in shown:
        seeds = shown["seeds"] if "seeds" in shown else pd.Series(1, index=shown.index)
        shown["epsilon"] = [
            _printed_epsilon(value) if n else "" for value, n in zip(shown["epsilon"], seeds, strict=True)
        ]
    numbers = None if decimals is None else f"{{:.{decimals}f}}".format
    formatters: Any = {} if decimals is None else dict.fromkeys(_in_units_of_metrics(shown), _metric_text)
    return shown.to_string(index=False, float_format=numbers, formatters=formatters, na_rep="")


def _in_units_of_metrics(table: pd.DataFrame) -> list[str]:
    """Return the columns that hold metrics other than an accuracy in percent."""
    metrics = [] if "metric" not in table else list(dict.fromkeys(table["metric"]))
    others = [column_of(metric) for metric in metrics if metric != ACCURACY]
    judged = JUDGED if others else ()
    return [str(name) for name in table if name in others or name in judged or str(name).startswith("test_")]


def _metric_text(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.4g}"


def _printed_epsilon(value: float) -> str:
    return "∞" if pd.isna(value) else rounded_up(value)


def _save(figure: Figure, path: Path) -> None:
    drawn = BytesIO()
    figure.savefig(drawn, format="png")
    plt.close(figure)
    write_whole(path, drawn.getvalue())


def _probed_fraction(facts: Mapping[str, Any]) -> float | None:
    probes = facts["config"]["federation"].get("probes", [])
    return next((probe["TopKOverlap"]["fraction"] for probe in probes if "TopKOverlap" in probe), None)
