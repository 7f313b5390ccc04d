"""What a run shows: a few of its rows, its curve of accuracy, its guarantee."""

import math
from collections.abc import Iterable, Mapping, Sequence

from dpcomp.core.layout import Layout
from dpcomp.display import html
from dpcomp.display.text import in_columns, number_text, plain, sparkline
from dpcomp.privacy.guarantee import Guarantee, rounded_up

FIRST = ("round", "test_accuracy", "uplink_bytes", "downlink_bytes", "epsilon", "test_loss")
MOST_ROWS, MOST_COLUMNS, MOST_WARNINGS = 6, 6, 3

Rows = Sequence[Mapping[str, float]]


def first_columns_first(columns: Iterable[str]) -> list[str]:
    """Return the names of a run's columns: the round, the accuracy or what else was measured of the test set, bytes, ε.

    Args:
        columns: The names in any order.
    """
    names = list(columns)
    measured = [name for name in names if name.startswith("test_") and not name.endswith("_loss")]
    order = ["round", *sorted(measured, key=lambda name: name != "test_accuracy"), *FIRST]
    wanted = [name for name in dict.fromkeys(order) if name in names]
    return [*wanted, *(name for name in names if name not in wanted)]


def run_as_text(
    rows: Rows, guarantee: Guarantee, layout: Layout, probed: Sequence[str], warnings: Sequence[str]
) -> str:
    """Return a run as lines of text.

    Columns of clean data are not shown, but named.

    Args:
        rows: A row for each round.
        guarantee: What the run cost in privacy.
        layout: The layers of the model.
        probed: The columns that depend on clean data.
        warnings: What is wrong with the run.
    """
    lines = [_title(rows, layout)]
    for name, bars, ends in _curves(rows, probed):
        lines.append(f"{name}  {bars}  {ends}")
    header, cells = _cells(rows, probed)
    if cells:
        lines += in_columns([header, *cells])
    return "\n".join([*lines, str(guarantee), *_notes(probed, warnings)])


def run_as_html(
    rows: Rows, guarantee: Guarantee, layout: Layout, probed: Sequence[str], warnings: Sequence[str]
) -> str:
    """Return a run as HTML, with what `run_as_text` has.

    Args:
        rows: A row for each round.
        guarantee: What the run cost in privacy.
        layout: The layers of the model.
        probed: The columns that depend on clean data.
        warnings: What is wrong with the run.
    """
    curves = [html.curve(name, bars, ends) for name, bars, ends in _curves(rows, probed)]
    header, cells = _cells(rows, probed)
    notes = [html.paragraph(words) for words in (str(guarantee), *_notes(probed, warnings))]
    return html.panel(_title(rows, layout), *curves, html.table(header, cells), *notes)


def _title(rows: Rows, layout: Layout) -> str:
    layers = len(layout.shapes)
    return (
        f"Run: {len(rows):,} round{'s' * (len(rows) != 1)} of a model with {layout.size:,} coordinates in {layers:,} "
        f"layer{'s' * (layers != 1)}"
    )


def _shown(rows: Rows, probed: Sequence[str]) -> list[str]:
    names = first_columns_first(dict.fromkeys(name for row in rows for name in row))
    return [name for name in names if name not in probed][:MOST_COLUMNS]


def _curves(rows: Rows, probed: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return the curve of what was measured first: its name, its bars, and its ends."""
    for name in _shown(rows, probed):
        if name.startswith("test_"):
            values = [float(row[name]) for row in rows if name in row and math.isfinite(row[name])]
            if values:
                return [(name, sparkline(values), f"{number_text(values[0])} → {number_text(values[-1])}")]
    return []


def _cells(rows: Rows, probed: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Return the names of a few columns, and a few rows of them from the first to the last, of those evaluated."""
    names = _shown(rows, probed)
    measured = [name for name in names if name.startswith("test_")]
    rows = [row for row in rows if any(name in row for name in measured)] or rows
    count = min(MOST_ROWS, len(rows))
    places = sorted({round(step * (len(rows) - 1) / max(1, count - 1)) for step in range(count)})
    return names, [[_cell(name, rows[place].get(name)) for name in names] for place in places]


def _cell(name: str, value: float | None) -> str:
    if value is None or value != value:
        return ""
    return rounded_up(value) if name == "epsilon" else number_text(value)


def _notes(probed: Sequence[str], warnings: Sequence[str]) -> list[str]:
    more = len(warnings) - MOST_WARNINGS
    lines = [f"warning: {plain(words)}" for words in warnings[:MOST_WARNINGS]]
    lines += [f"and {more:,} more: run.warnings"] if more > 0 else []
    clean = [name for name in probed if name != "seconds"]
    named = ", ".join(clean[:MOST_COLUMNS]) + (", ..." if len(clean) > MOST_COLUMNS else "")
    return [*lines, *([f"of clean data, for research alone: {named}"] if clean else [])]
