"""What a sweep leaves beside its configs: a table over the grid as CSV, and figures."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from dpcomp.core.storage import write_whole
from dpcomp.lab.figures import scrambling, training
from dpcomp.lab.results import report
from dpcomp.lab.results.comparison import MEASURES, measured
from dpcomp.lab.results.frames import curves
from dpcomp.lab.sweep.sweep import Outcome

MOST_LINES = 10  # as many colours as the palette has that everyone can tell apart
COLUMNS = ("config", "tuning", "tried", *MEASURES, "folder")


def table(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """A row a point: its label on each axis, its best tuning, how many were tried, MEASURES, the folder of its seeds.

    An axis that has the name of another column is called `grid.<name>`. The folder is relative to the config's.
    """
    rows = []
    for outcome in outcomes:
        labels = {f"grid.{name}" if name in COLUMNS else name: text for name, text in outcome.point.labels.items()}
        found = measured([report.read(folder) for folder in outcome.folders])
        beside = outcome.point.config.absolute().parent
        folder = outcome.folders[0].parent.relative_to(beside).as_posix() if outcome.folders else ""
        rows.append({**labels, "tuning": outcome.tuning, "tried": outcome.tried, **found, "folder": folder})
    return pd.DataFrame(rows)


def write(outcomes: Sequence[Outcome]) -> None:
    """One config's table beside it, as `<config>.csv`, and its figures, of what is finished."""
    config = outcomes[0].point.config
    write_whole(config.with_suffix(".csv"), table(outcomes).to_csv(index=False).encode())
    reports = {found.point.title: [report.read(folder) for folder in found.folders] for found in outcomes}
    write_figures(config, {title: group for title, group in reports.items() if group})


def write_figures(config: Path, reports: Mapping[str, Sequence[dict[str, Any]]]) -> None:
    """Curves by title, in the config's folder; of more than MOST_LINES none, for nobody could tell them apart."""
    if not 0 < len(reports) <= MOST_LINES:
        return
    rounds = curves(reports)
    _save(training.draw(rounds), config.with_suffix("") / "training.png")
    fractions = {_probed_fraction(facts) for group in reports.values() for facts in group}
    fraction = fractions.pop()
    if fraction is not None and not fractions:
        _save(scrambling.draw(rounds, fraction), config.with_suffix("") / "scrambling.png")


def _save(figure: Figure, path: Path) -> None:
    drawn = BytesIO()
    figure.savefig(drawn, format="png")
    plt.close(figure)
    write_whole(path, drawn.getvalue())


def _probed_fraction(facts: dict[str, Any]) -> float | None:
    probes = facts["config"]["federation"].get("probes", [])
    return next((probe["TopKOverlap"]["fraction"] for probe in probes if "TopKOverlap" in probe), None)
