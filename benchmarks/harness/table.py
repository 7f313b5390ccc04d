"""The table that `python -m benchmarks` prints."""

from collections.abc import Iterable
from itertools import groupby

from rich.table import Table

from benchmarks.harness.rows import Row

COLUMNS = ("dpcomp", "peer or limit", "its figure", "ratio", "lowest – highest", "goal", "")


def printed_table(title: str, rows: Iterable[Row]) -> Table:
    """Lay out rows: a line each, with the ratio, its spread, the goal, and whether it is met."""
    table = Table(title=title, title_justify="left")
    table.add_column("", overflow="fold")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "peer or limit" else "right")
    for what, group in groupby(rows, lambda row: row.what):
        for number, row in enumerate(group):
            figure, *others = cells(row)
            first = (what, figure) if number == 0 else ("", "")
            table.add_row(*first, *others)
    return table


def cells(row: Row) -> tuple[str, ...]:
    """Return the text of a row's cells under COLUMNS."""
    missing = f"– ({row.note})" if row.note else "–"
    goal = "" if row.goal is None else f"{row.goal} {row.unit}" if row.goal.of == "figure" else str(row.goal)
    return (
        missing if row.figure is None else f"{digits(row.figure.median)} {row.unit}",
        row.peer or "–",
        "–" if row.peer_figure is None else f"{digits(row.peer_figure.median)} {row.unit}",
        "–" if row.ratio is None else digits(row.ratio.median),
        "–" if row.ratio is None else f"{digits(row.ratio.lowest)} – {digits(row.ratio.highest)}",
        goal,
        {True: "met", False: "not met", None: ""}[row.met],
    )


def digits(value: float) -> str:
    """Write a number with three significant digits, and no exponent."""
    exponent = int(f"{value:.2e}".split("e")[1])
    return f"{value:,.{max(0, 2 - exponent)}f}" if value else "0"
